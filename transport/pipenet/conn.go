package pipenet

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// link joins the two ends of a connection. One mutex guards both, and every
// change is broadcast.
type link struct {
	mu    sync.Mutex
	cond  *sync.Cond
	ends  [2]*Conn
	cut   bool
	late  []func()    // what an end has yet to learn, in order, once the cut is healed
	timer *time.Timer // breaks the connection while it is cut
}

// Conn is one end of a connection.
//
// Invariant: peer.in.Len() + held.Len() <= Window, and held is empty unless the
// link is cut.
type Conn struct {
	net           *Net
	link          *link
	peer          *Conn
	local, remote Addr

	in     bytes.Buffer // arrived, not read yet
	held   bytes.Buffer // sent while the link was cut
	eof    bool         // the peer has closed: no more after in
	rerr   error        // what Read gives
	werr   error        // what Write gives
	closed bool
	rdl    deadline
	wdl    deadline
}

// deadline wakes the waiters of a link when it passes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// set is called with the link's mutex held.
func (d *deadline) set(t time.Time, k *link) {
	d.stop()
	d.at = t
	if !t.IsZero() && !d.passed() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			k.mu.Lock()
			k.cond.Broadcast()
			k.mu.Unlock()
		})
	}
	k.cond.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (c *Conn) Read(p []byte) (int, error) {
	k := c.link
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		switch {
		case c.rerr != nil:
			return 0, c.opError("read", c.rerr)
		case c.rdl.passed():
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case c.in.Len() > 0:
			n, _ := c.in.Read(p)
			k.cond.Broadcast()
			return n, nil
		case c.eof:
			return 0, io.EOF
		}
		k.cond.Wait()
	}
}

func (c *Conn) Write(p []byte) (int, error) {
	k := c.link
	k.mu.Lock()
	defer k.mu.Unlock()
	sent := 0
	for {
		switch {
		case c.werr != nil:
			return sent, c.opError("write", c.werr)
		case c.wdl.passed():
			return sent, c.opError("write", os.ErrDeadlineExceeded)
		}
		if room := Window - c.peer.in.Len() - c.held.Len(); room > 0 {
			n := min(room, len(p)-sent)
			to := &c.peer.in
			if k.cut {
				to = &c.held
			}
			to.Write(p[sent : sent+n])
			sent += n
			k.cond.Broadcast()
		}
		if sent == len(p) {
			return sent, nil
		}
		k.cond.Wait()
	}
}

// Close ends the connection. The peer reads what was sent before, then io.EOF.
func (c *Conn) Close() error {
	k := c.link
	k.mu.Lock()
	if c.closed {
		k.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.rerr, c.werr = net.ErrClosed, net.ErrClosed
	c.rdl.stop()
	c.wdl.stop()
	peer := c.peer
	k.tell(func() {
		peer.eof = true
		if peer.werr == nil {
			peer.werr = os.NewSyscallError("write", syscall.EPIPE)
		}
	})
	both := peer.closed
	if both && k.timer != nil {
		k.timer.Stop()
	}
	k.mu.Unlock()
	if both {
		c.net.mu.Lock()
		delete(c.net.links, k)
		c.net.mu.Unlock()
	}
	return nil
}

// kill is a reset that comes from this end: both ends get ECONNRESET.
func (c *Conn) kill() {
	k := c.link
	k.mu.Lock()
	defer k.mu.Unlock()
	c.reset(syscall.ECONNRESET)
	peer := c.peer
	k.tell(func() { peer.reset(syscall.ECONNRESET) })
}

// reset breaks this end. What it has not read is lost, as with TCP.
func (c *Conn) reset(errno syscall.Errno) {
	if c.closed {
		return
	}
	c.in.Reset()
	c.rerr = os.NewSyscallError("read", errno)
	c.werr = os.NewSyscallError("write", errno)
	c.link.cond.Broadcast()
}

// tell carries news to the other end, now or when the cut is healed.
func (k *link) tell(f func()) {
	if k.cut {
		k.late = append(k.late, f)
		k.cond.Broadcast()
		return
	}
	f()
	k.cond.Broadcast()
}

func (k *link) setCut(cut bool, breakAfter time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cut == k.cut {
		return
	}
	k.cut = cut
	if cut {
		if breakAfter > 0 {
			k.timer = time.AfterFunc(breakAfter, k.expire)
		}
		return
	}
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
	for _, c := range k.ends {
		if c.peer.rerr == nil { // else it is of no use to anybody
			c.peer.in.Write(c.held.Bytes())
		}
		c.held.Reset()
	}
	for _, f := range k.late {
		f()
	}
	k.late = nil
	k.cond.Broadcast()
}

// expire is what TCP_USER_TIMEOUT and keepalive do at either end by itself.
func (k *link) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.cut {
		return
	}
	k.late = nil
	for _, c := range k.ends {
		c.held.Reset()
		if c.rerr == nil {
			c.reset(syscall.ETIMEDOUT)
		}
	}
}

func (c *Conn) LocalAddr() net.Addr  { return c.local }
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(t, &c.rdl, &c.wdl) }

func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, &c.rdl) }

func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, &c.wdl) }

func (c *Conn) setDeadline(t time.Time, ds ...*deadline) error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	for _, d := range ds {
		d.set(t, c.link)
	}
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "pipe", Source: c.local, Addr: c.remote, Err: err}
}
