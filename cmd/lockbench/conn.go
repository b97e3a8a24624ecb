package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/lockerd/lockerd/transport"
)

// Bounds of one client's talk.
const (
	dialTime  = 5 * time.Second
	replyTime = 60 * time.Second // for an answer, unless said otherwise
)

// conn is one client's connection. It is bare of what package client does for its
// callers, so that the server is what is measured.
type conn struct {
	net.Conn
	in    *transport.ReplyReader
	out   []byte
	proto int
	said  bool // the server knows which protocol we speak
}

// dialer connects clients to one server each.
type dialer struct {
	net.Dialer
	proto int
}

// perSource is how many clients share a source address: fewer than the ports that
// the kernel has for them, ip_local_port_range in ip(7).
const perSource = 20_000

// dialerFor is for client number i.
func dialerFor(i, proto int, addr string) *dialer {
	d := &dialer{proto: proto}
	d.Timeout = dialTime
	d.KeepAlive = -1
	if host, _, err := net.SplitHostPort(addr); err == nil && i >= perSource {
		if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() && ip.To4() != nil {
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i/perSource))}
		}
	}
	return d
}

func (d *dialer) connect(ctx context.Context, addr string) (*conn, error) {
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, in: transport.NewReplyReader(c), proto: d.proto}, nil
}

// put prepares a request for send.
func (c *conn) put(q *transport.Request) {
	q.Proto = c.proto
	if c.said || c.proto < 2 {
		c.out = q.AppendAgain(c.out)
	} else {
		c.out = q.Append(c.out, false)
	}
	c.said = true
}

// send writes what put has prepared.
func (c *conn) send() error {
	_, err := c.Write(c.out)
	c.out = c.out[:0]
	return err
}

// status reads until a status block comes, for at most the given time.
func (c *conn) status(within time.Duration) (transport.Status, error) {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return transport.Status{}, err
	}
	for {
		r, err := c.in.Next()
		if err != nil {
			return transport.Status{}, err
		}
		switch r.Kind {
		case transport.ReplyStatus:
			if r.Status.Fault != nil {
				return r.Status, r.Status.Fault
			}
			return r.Status, nil
		case transport.ReplyMoved:
			return transport.Status{}, errors.New("the server is stopping")
		}
	}
}

// ask sends a request and reads its answer.
func (c *conn) ask(q *transport.Request, within time.Duration) (transport.Status, error) {
	c.put(q)
	if err := c.send(); err != nil {
		return transport.Status{}, err
	}
	return c.status(within)
}

// owner makes the requests of one client, for one lock.
type owner struct {
	lock, unlock transport.Request
}

func newOwner(user, lock string) *owner {
	q := transport.Request{User: user, Locks: []string{lock}, Block: true}
	o := &owner{lock: q, unlock: q}
	o.lock.Verb, o.unlock.Verb = transport.VerbLock, transport.VerbUnlock
	return o
}

// take asks for the lock and waits for it.
func (o *owner) take(c *conn, within time.Duration) error {
	st, err := c.ask(&o.lock, within)
	if err == nil && !st.Locked {
		err = fmt.Errorf("LOCK was answered without a lock; it is held by %q", st.Owner)
	}
	return err
}

// give releases the lock.
func (o *owner) give(c *conn, within time.Duration) error {
	st, err := c.ask(&o.unlock, within)
	if err == nil && st.Locked {
		err = errors.New("UNLOCK was answered with the lock still held")
	}
	return err
}

// once is one request on a connection of its own, as IPC::Locker makes it.
func (o *owner) once(ctx context.Context, d *dialer, addr string, q *transport.Request) error {
	c, err := d.connect(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	q.Proto = c.proto
	c.out = q.Append(c.out, true)
	if err := c.send(); err != nil {
		return err
	}
	st, err := c.status(replyTime)
	if err == nil && st.Locked != (q.Verb == transport.VerbLock) {
		err = fmt.Errorf("%v was answered with locked %v", q.Verb, st.Locked)
	}
	return err
}
