package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// dialLive is how long a UNIX socket's server may take to answer the question
// whether it is there.
const dialLive = time.Second

// ListenClient opens a client port: network "tcp" with a host and port, or "unix"
// with a path. The socket file of a server that was killed is replaced; that of a
// live one is not, and the error is EADDRINUSE then.
func ListenClient(ctx context.Context, network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	if network != "unix" {
		ln, err := lc.Listen(ctx, network, address)
		if err != nil {
			return nil, fmt.Errorf("open the client port: %w", err)
		}
		return ln, nil
	}
	// Of two servers that start at once, only one may find the old file stale.
	unlock, err := lockDir(ctx, filepath.Dir(address))
	if err != nil {
		return nil, fmt.Errorf("open the client socket: %w", err)
	}
	defer unlock()
	if err := removeStale(ctx, address); err != nil {
		return nil, fmt.Errorf("open the client socket: %w", err)
	}
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("open the client socket: %w", err)
	}
	return ln, nil
}

// removeStale removes a socket file that nobody listens on.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket", path)
	}
	ctx, cancel := context.WithTimeout(ctx, dialLive)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w: another server listens there", path, syscall.EADDRINUSE)
	}
	return os.Remove(path)
}

// lockDir takes a directory's lock (flock(2)), which ends with the process at the
// latest. Its holders keep it for no longer than dialLive.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*dialLive)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}
