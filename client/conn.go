package client

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/lockerd/lockerd/transport"
)

const (
	// answerTime is how long a server may take for an answer that waits for nobody
	// else. Past it another server is asked.
	answerTime = 10 * time.Second
	// writeTime is how long the kernel may take to accept a request.
	writeTime = 5 * time.Second
)

// keepAlive finds a silently cut server while we wait in a queue, where nothing
// is sent either way, in 3+3*2 seconds.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: 2 * time.Second, Count: 3}

// conn is a connection to one server. Its reader goroutine ends with close or
// with the connection.
type conn struct {
	nc      net.Conn
	at      endpoint
	proto   int // 0 until the server has shown whether it speaks 2
	replies chan transport.Reply
	stop    chan struct{}
	ended   chan struct{} // the reader has ended; err says why
	err     error
	owed    int // status blocks still to come for requests that nobody waits for
}

func dial(ctx context.Context, at endpoint, o *Options) (*conn, error) {
	nc, err := dialNet(ctx, at, o)
	if err != nil {
		return nil, &againError{err}
	}
	c := &conn{
		nc:      nc,
		at:      at,
		replies: make(chan transport.Reply),
		stop:    make(chan struct{}),
		ended:   make(chan struct{}),
	}
	go c.read()
	return c, nil
}

func dialNet(ctx context.Context, at endpoint, o *Options) (net.Conn, error) {
	if at.network == "unix" {
		d := net.Dialer{Timeout: o.ConnectTimeout}
		return d.DialContext(ctx, at.network, at.addr)
	}
	d := transport.Dialer{Timeout: o.ConnectTimeout, TLS: o.TLS}
	nc, err := d.Dial(ctx, at.addr)
	if err != nil {
		return nil, err
	}
	if t, ok := nc.(*net.TCPConn); ok {
		// It only makes the discovery faster than the dialer's own setting.
		_ = t.SetKeepAliveConfig(keepAlive)
	}
	return nc, nil
}

func (c *conn) read() {
	defer close(c.ended)
	r := transport.NewReplyReader(c.nc)
	for {
		reply, err := r.Next()
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.replies <- reply:
		case <-c.stop:
			c.err = net.ErrClosed
			return
		}
	}
}

// close ends the connection and its reader. Not to be called twice.
func (c *conn) close() {
	close(c.stop)
	c.nc.Close()
	<-c.ended
}

// broken is why the connection has ended.
func (c *conn) broken() error {
	err := c.err
	if err == io.EOF {
		err = errors.New("it closed the connection")
	}
	return again("lock server %v: %w", c.at, err)
}

func (c *conn) send(b []byte) error {
	_ = c.nc.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := c.nc.Write(b); err != nil {
		return again("lock server %v: %w", c.at, err)
	}
	return nil
}

// request writes a request in the protocol that the connection is known to speak.
func (c *conn) request(q *transport.Request, last bool) error {
	if c.proto == 2 && !last {
		return c.send(q.AppendAgain(nil))
	}
	return c.send(q.Append(nil, last))
}

// next is the next reply. A timeout that is not nil ends the wait with errSilent.
func (c *conn) next(ctx context.Context, timeout <-chan time.Time) (transport.Reply, error) {
	select {
	case r := <-c.replies:
		c.notice(r)
		return r, nil
	case <-c.ended:
		return transport.Reply{}, c.broken()
	case <-ctx.Done():
		return transport.Reply{}, context.Cause(ctx)
	case <-timeout:
		return transport.Reply{}, errSilent
	}
}

// errSilent is returned by next when its time is over.
var errSilent = errors.New("no answer in time")

// notice learns the protocol from the first reply: a server that speaks 2 says so
// before anything else.
func (c *conn) notice(r transport.Reply) {
	if c.proto != 0 {
		return
	}
	c.proto = 1
	if r.Kind == transport.ReplyProto {
		c.proto = 2
	}
}

// handshake finds out the protocol before anything is asked for, with VERSION,
// which every server answers.
func (c *conn) handshake(ctx context.Context) error {
	if c.proto != 0 {
		return nil
	}
	if err := c.send([]byte("proto 2\nVERSION\n\n")); err != nil {
		return err
	}
	timeout := time.After(answerTime)
	for {
		r, err := c.next(ctx, timeout)
		if errors.Is(err, errSilent) {
			return again("lock server %v: %w", c.at, err)
		}
		if err != nil {
			return err
		}
		if r.Kind == transport.ReplyVersion {
			return nil
		}
	}
}

// status waits for the status block that answers the last request, and hands
// other replies to also, which may be nil.
func (c *conn) status(ctx context.Context, also func(transport.Reply)) (transport.Status, error) {
	timeout := time.After(answerTime)
	for {
		r, err := c.next(ctx, timeout)
		switch {
		case errors.Is(err, errSilent):
			return transport.Status{}, again("lock server %v: %w", c.at, err)
		case err != nil:
			return transport.Status{}, err
		case r.Kind == transport.ReplyStatus && c.owed > 0:
			c.owed--
		case r.Kind == transport.ReplyStatus:
			return r.Status, nil
		case also != nil:
			also(r)
		}
	}
}
