package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// raftLayer is raft.StreamLayer over one share of a [transport.Mux]. Closing it ends its
// dials and stops its listener; the connections that it accepted are closed with
// the Mux, since raft's NetworkTransport leaves them open.
//
// After its first byte, a connection says which server it is for, and ends if that
// is another one.
type raftLayer struct {
	net.Listener
	dial      func(context.Context, string) (net.Conn, error)
	first     byte
	own       raft.ServerID
	advertise net.Addr
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
}

var _ raft.StreamLayer = (*raftLayer)(nil)

// newRaftLayer serves ln, dials with dial and opens every connection with the
// byte first. It takes connections for the server own. Other nodes are told to come
// to advertise; nil means the address of ln.
func newRaftLayer(ln net.Listener, dial func(context.Context, string) (net.Conn, error), first byte, own raft.ServerID, advertise net.Addr) *raftLayer {
	l := &raftLayer{Listener: ln, dial: dial, first: first, own: own, advertise: advertise}
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

// maxTarget bounds the id of the server that a connection is for.
const maxTarget = 255

var errOtherServer = errors.New("the connection is for another server: this one has come to its address")

// joinTarget is what [raftLayer.Dial] takes for an address: Raft's transport has no
// other way to say whom it means.
func joinTarget(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + "@" + addr
}

// Dial connects to the Raft port of another node, at an address from [joinTarget].
func (l *raftLayer) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, address, ok := strings.Cut(string(target), "@")
	if !ok || len(id) > maxTarget {
		return nil, fmt.Errorf("dial %s: no server is named", target)
	}
	ctx, cancel := l.ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	c, err := l.dial(ctx, address)
	if err != nil {
		return nil, err
	}
	if err := announce(ctx, c, append([]byte{l.first, byte(len(id))}, id...)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Accept implements net.Listener.
func (l *raftLayer) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &targetedConn{Conn: c, own: l.own}, nil
}

// targetedConn is a connection that has to begin with the id of this server. Its
// first Read looks: nobody else is to wait for that.
type targetedConn struct {
	net.Conn
	own  raft.ServerID
	told bool
	err  error
}

// Read implements net.Conn. Raft's transport reads in one goroutine.
func (c *targetedConn) Read(b []byte) (int, error) {
	if !c.told {
		c.told = true
		c.err = c.meet()
	}
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(b)
}

// meet reads whom the connection is for.
func (c *targetedConn) meet() error {
	if err := c.SetReadDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	var size [1]byte
	if _, err := io.ReadFull(c.Conn, size[:]); err != nil {
		return err
	}
	id := make([]byte, size[0])
	if _, err := io.ReadFull(c.Conn, id); err != nil {
		return err
	}
	if raft.ServerID(id) != c.own {
		return errOtherServer
	}
	return c.SetReadDeadline(time.Time{})
}

// announce sends how a connection begins.
func announce(ctx context.Context, c net.Conn, first []byte) error {
	if t, ok := ctx.Deadline(); ok {
		if err := c.SetWriteDeadline(t); err != nil {
			return err
		}
	}
	if _, err := c.Write(first); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}

// Close is called by raft's NetworkTransport.
func (l *raftLayer) Close() error {
	l.cancel()
	return l.Listener.Close()
}
