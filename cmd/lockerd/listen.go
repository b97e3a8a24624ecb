package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/pidprobe"
	"github.com/lockerd/lockerd/transport"
)

// listeners are the ports of a node. All are opened before anything else is
// done, so that a port in use is known at once.
type listeners struct {
	client, peer, http net.Listener // nil if off
	pidstat            *net.UDPConn // likewise
	pidstatPort        uint16       // also that of other hosts; 0 for none
	admin              *adminPort   // likewise
}

func (o *options) listen(ctx context.Context, log hclog.Logger) (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if o.path != "" {
		l.client, err = listenUnix(ctx, o.path)
	} else {
		var port int
		if port, err = o.clientPort(ctx); err == nil {
			l.client, err = listenTCP(ctx, "--port", net.JoinHostPort(o.host, strconv.Itoa(port)))
		}
	}
	if err == nil && !o.agent {
		l.peer, err = listenTCP(ctx, "--peer", o.peer)
	}
	if err == nil && o.http != off {
		l.http, err = listenTCP(ctx, "--http", o.http)
	}
	if err == nil {
		l.pidstatPort, err = o.pidstatPort(ctx)
	}
	if err == nil && l.pidstatPort != 0 {
		l.pidstat, err = o.listenPidstat(ctx, l.pidstatPort, pidprobe.Here(), log)
	}
	if err == nil {
		l.admin, err = o.listenAdmin(log)
	}
	return l, err
}

// close may be called for listeners that somebody else has closed already.
func (l *listeners) close() {
	for _, ln := range []net.Listener{l.client, l.peer, l.http} {
		if ln != nil {
			ln.Close()
		}
	}
	if l.pidstat != nil {
		l.pidstat.Close()
	}
	if l.admin != nil {
		l.admin.Close()
	}
}

func (l *listeners) adminAddress() string {
	if l.admin == nil {
		return off
	}
	return address(l.admin)
}

func listenTCP(ctx context.Context, flag, addr string) (net.Listener, error) {
	ln, err := transport.Listen(ctx, addr, nil)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w (is a lockerd running already? give another port with %s)", err, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		if flag == "--port" {
			flag = "--host"
		}
		return nil, fmt.Errorf("%w (give an address of this host with %s)", err, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w (ports below 1024 are for root: give another with %s)", err, flag)
	}
	return ln, err
}

// listenUnix opens a socket that anyone on this host may connect to, as with a port.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	ln, err := cluster.ListenClient(ctx, "unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("%w (a socket's path has at most 107 bytes)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (give another path with --path)", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		ln.Close()
		return nil, fmt.Errorf("open the client socket: %w", err)
	}
	return ln, nil
}
