package transport

import (
	"context"
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// UserTimeout is how long sent bytes may go unacknowledged before the kernel
// gives a connection up (tcp(7), TCP_USER_TIMEOUT). Without it, a peer that lost
// its power is noticed after about 15 minutes of retransmissions.
const UserTimeout = 10 * time.Second

// keepAlive finds dead peers of connections on which nobody sends.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Dialer makes connections to other nodes. The zero Dialer makes plain ones.
type Dialer struct {
	// Timeout bounds one Dial with its handshake, beside the caller's context.
	// 0 means 5 s.
	Timeout time.Duration

	// TLS, if not nil, encrypts. An empty ServerName stands for the dialled host.
	TLS *tls.Config
}

// Dial connects to addr (host:port) over TCP. A host that is up and does not
// listen gives an error that is syscall.ECONNREFUSED.
func (d *Dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nd := net.Dialer{KeepAliveConfig: keepAlive, Control: setUserTimeout}
	c, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil || d.TLS == nil {
		return c, err
	}
	cfg := d.TLS
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		if cfg.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			c.Close()
			return nil, err
		}
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: c.RemoteAddr(), Err: err}
	}
	return tc, nil
}

// Listen opens a TCP listener whose connections notice a dead peer as fast as
// those of a [Dialer] do. With cfg they are encrypted.
func Listen(ctx context.Context, addr string, cfg *tls.Config) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: setUserTimeout}
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil || cfg == nil {
		return ln, err
	}
	return tls.NewListener(ln, cfg), nil
}

// setUserTimeout is a Control function; accepted sockets inherit the option.
func setUserTimeout(_, _ string, rc syscall.RawConn) error {
	var err error
	if cerr := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(UserTimeout.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}
