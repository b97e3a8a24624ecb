package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/lockerd/lockerd/transport"
)

// ErrElsewhere is returned by Anchor when the server is not a node on the host of
// the process that owns the lock, so that it can't watch that process either.
var ErrElsewhere = errors.New("the lock server runs on another host")

// Anchor ties the lock to everybody who inherits the returned connection, besides
// the process that owns it: a lock with Options.Autounlock then ends when that
// process has ended and every copy of the descriptor is closed. There is nothing to
// read or write on it. It works with a node on the same host only, else it is
// [ErrElsewhere], and not through TLS. Should the node die, the process alone
// counts again.
func (l *Locker) Anchor(ctx context.Context) (*os.File, error) {
	h := l.view.Load()
	if h == nil {
		return nil, ErrLost
	}
	if h.proto == 1 {
		return nil, fmt.Errorf("%w: %v is one of IPC::Locker", ErrUnsupported, h.at)
	}
	c, err := dial(ctx, h.at, &l.opts)
	if err != nil {
		return nil, err
	}
	defer c.close()
	q := l.basic(transport.VerbAnchor)
	q.Fence, q.Start, q.Boot = h.fence, l.start, l.boot
	if err := c.request(&q, false); err != nil {
		return nil, err
	}
	silence := time.NewTimer(answerTime)
	defer silence.Stop()
	for {
		r, err := c.next(ctx, silence.C)
		switch {
		case err != nil:
			return nil, err
		case r.Kind == transport.ReplyAnchored && r.Fence == h.fence:
			return c.file()
		case r.Kind == transport.ReplyStatus && r.Status.Fault != nil && r.Status.Fault.Word == transport.WordElsewhere:
			return nil, fmt.Errorf("%w: %v", ErrElsewhere, h.at)
		case r.Kind == transport.ReplyStatus && r.Status.Fault != nil:
			return nil, fromFault(r.Status.Fault)
		}
	}
}

// file is a copy of the connection's descriptor.
func (c *conn) file() (*os.File, error) {
	f, ok := c.nc.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%w: a connection with TLS cannot be inherited", ErrUnsupported)
	}
	return f.File()
}

var (
	_ interface{ File() (*os.File, error) } = (*net.TCPConn)(nil)
	_ interface{ File() (*os.File, error) } = (*net.UnixConn)(nil)
)
