package cluster

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// raftLayer is raft.StreamLayer over one share of a [transport.Mux]. Closing it ends its
// dials and stops its listener; the connections that it accepted are closed with
// the Mux, since raft's NetworkTransport leaves them open.
type raftLayer struct {
	net.Listener
	dial      func(context.Context, string) (net.Conn, error)
	first     byte
	advertise net.Addr
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
}

var _ raft.StreamLayer = (*raftLayer)(nil)

// newRaftLayer serves ln, dials with dial and opens every connection with the
// byte first. Other nodes are told to come to advertise; nil means the address
// of ln.
func newRaftLayer(ln net.Listener, dial func(context.Context, string) (net.Conn, error), first byte, advertise net.Addr) *raftLayer {
	l := &raftLayer{Listener: ln, dial: dial, first: first, advertise: advertise}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Addr is the address that other nodes are told.
func (l *raftLayer) Addr() net.Addr {
	if l.advertise != nil {
		return l.advertise
	}
	return l.Listener.Addr()
}

// Dial connects to the Raft port of another node.
func (l *raftLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := l.ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	c, err := l.dial(ctx, string(address))
	if err != nil {
		return nil, err
	}
	if err := announce(ctx, c, l.first); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// announce sends a connection's first byte.
func announce(ctx context.Context, c net.Conn, first byte) error {
	if t, ok := ctx.Deadline(); ok {
		if err := c.SetWriteDeadline(t); err != nil {
			return err
		}
	}
	if _, err := c.Write([]byte{first}); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}

// Close is called by raft's NetworkTransport.
func (l *raftLayer) Close() error {
	l.cancel()
	return l.Listener.Close()
}
