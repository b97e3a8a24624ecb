package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// errNoAdmin is for those whose word is not enough to stop what runs on other hosts. It
// says where to ask.
func (p *webPort) errNoAdmin() error {
	host, err := os.Hostname()
	socket := p.socket.Load()
	if err != nil || socket == nil {
		return errors.New("orders are for administrators: ask by the admin socket of a node's host, as root (lockctl there does); this node has none")
	}
	return fmt.Errorf("orders are for administrators: ask by the admin socket, on host %s %s, as root (lockctl there does)", host, *socket)
}

// serves is told of what the port listens on.
func (p *webPort) serves(ln net.Listener) context.Context {
	if a, ok := ln.Addr().(*net.UnixAddr); ok {
		p.socket.Store(&a.Name)
	}
	return context.Background()
}

// caller is who is at the other end of a request, by the kernel's word.
type caller struct{ uid uint32 }

type callerKey struct{}

// withPeer notes who has connected, if it is by a UNIX socket.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, caller{cred.Uid})
}

// admin is the name of who asks, if that one may give orders: root, and whom the node
// runs as.
func (p *webPort) admin(r *http.Request) (by string, err error) {
	c, ok := r.Context().Value(callerKey{}).(caller)
	if !ok || c.uid != 0 && int(c.uid) != p.uid {
		return "", p.errNoAdmin()
	}
	name := "uid" + strconv.Itoa(int(c.uid))
	if u, err := user.LookupId(strconv.Itoa(int(c.uid))); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("learn this host's name: %w", err)
	}
	return name + "@" + host, nil
}

// stranger says of somebody who may not give orders what is known: the user, by the kernel's
// word, or the address.
func stranger(r *http.Request) string {
	if c, ok := r.Context().Value(callerKey{}).(caller); ok {
		return "uid" + strconv.Itoa(int(c.uid))
	}
	return r.RemoteAddr
}

// ListenAdmin opens the admin socket, which nobody but root and this program's own user
// can connect to. What a dead node has left at the path is replaced; a node that
// serves there is not.
func ListenAdmin(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("admin socket %s is in use by another lockerd: %w", path, syscall.EADDRINUSE)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there, and no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replace the admin socket: %w", err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	// Who has connected before this is known by SO_PEERCRED all the same.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open the admin socket: %w", err), ln.Close())
	}
	return ln, nil
}
