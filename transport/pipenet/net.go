// Package pipenet is a network in memory, for simulations: listeners, dials and
// buffered connections with deadlines, and the faults of a real network at the
// push of a button.
//
// It behaves like TCP between hosts where that matters to a distributed system.
// A process that dies resets its connections, and a dial to it is refused at
// once. A cut link says nothing: dials hang, and bytes sent are held back (as by
// retransmission) until the link is healed or the connection times out, never
// lost from the middle of a stream.
//
// It uses no sockets and no goroutines of its own, only mutexes, conditions,
// channels and timers, all made on use: a [Net] created inside a testing/synctest
// bubble runs in virtual time.
package pipenet

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Window is how many bytes may be under way in one direction of a connection
// before a writer blocks.
const Window = 64 << 10

// backlog is how many connections a listener queues; a dial beyond waits.
const backlog = 128

// Net is the network. Addresses are any strings; each stands for a host, and is
// what faults name.
type Net struct {
	// UserTimeout breaks a connection, at both ends, that has been cut this long.
	// 0 means never.
	UserTimeout time.Duration

	mu        sync.Mutex
	listeners map[string]*listener
	links     map[*link]struct{}
	cuts      map[[2]string]bool
	isolated  map[string]bool
	healed    chan struct{} // closed and replaced when links come back
}

// New makes a network without faults. Cut connections break after 10 s.
func New() *Net {
	return &Net{
		UserTimeout: 10 * time.Second,
		listeners:   map[string]*listener{},
		links:       map[*link]struct{}{},
		cuts:        map[[2]string]bool{},
		isolated:    map[string]bool{},
		healed:      make(chan struct{}),
	}
}

// Addr is a host of the network.
type Addr string

func (Addr) Network() string  { return "pipe" }
func (a Addr) String() string { return string(a) }

// Listen opens a listener. An address in use gives syscall.EADDRINUSE.
func (n *Net) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, opError("listen", "", addr, os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	l := &listener{net: n, addr: Addr(addr), queue: make(chan *Conn, backlog), done: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Dial connects from one host to another. Without a listener there it fails with
// syscall.ECONNREFUSED at once; over a cut link it waits until ctx ends.
func (n *Net) Dial(ctx context.Context, from, addr string) (net.Conn, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, opError("dial", from, addr, err)
		}
		n.mu.Lock()
		l, healed := n.listeners[addr], n.healed
		if n.isCut(from, addr) {
			n.mu.Unlock()
			select {
			case <-healed:
				continue
			case <-ctx.Done():
				return nil, opError("dial", from, addr, ctx.Err())
			}
		}
		if l == nil {
			n.mu.Unlock()
			return nil, opError("dial", from, addr, os.NewSyscallError("connect", syscall.ECONNREFUSED))
		}
		near, far := n.newLink(from, addr)
		select {
		case l.queue <- far:
			n.mu.Unlock()
			return near, nil
		default:
		}
		delete(n.links, near.link)
		n.mu.Unlock()
		// A full queue is rare enough to be looked at again by the clock.
		t := time.NewTimer(10 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// Dialer gives Dial from one host, in the shape that dial hooks have.
func (n *Net) Dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) { return n.Dial(ctx, from, addr) }
}

// Cut cuts the link between two hosts, both ways.
func (n *Net) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair(a, b)] = true
	n.refresh()
}

// Isolate cuts a host off from all others.
func (n *Net) Isolate(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isolated[addr] = true
	n.refresh()
}

// Heal mends every link. What connections held back is delivered.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	clear(n.isolated)
	close(n.healed)
	n.healed = make(chan struct{})
	n.refresh()
}

// Kill is the death of the process at addr: its listener closes, and all its
// connections are reset. Dials are refused until somebody listens there again.
func (n *Net) Kill(addr string) {
	n.mu.Lock()
	l := n.listeners[addr]
	links := make([]*link, 0, len(n.links))
	for k := range n.links {
		links = append(links, k)
	}
	n.mu.Unlock()
	if l != nil {
		l.Close()
	}
	for _, k := range links {
		for _, c := range k.ends {
			if string(c.local) == addr {
				c.kill()
			}
		}
	}
}

func (n *Net) newLink(from, to string) (near, far *Conn) {
	k := &link{}
	k.cond = sync.NewCond(&k.mu)
	near = &Conn{net: n, link: k, local: Addr(from), remote: Addr(to)}
	far = &Conn{net: n, link: k, local: Addr(to), remote: Addr(from)}
	near.peer, far.peer = far, near
	k.ends = [2]*Conn{near, far}
	n.links[k] = struct{}{}
	return near, far
}

// refresh tells every link whether it is cut. The caller holds n.mu.
func (n *Net) refresh() {
	for k := range n.links {
		k.setCut(n.isCut(string(k.ends[0].local), string(k.ends[1].local)), n.UserTimeout)
	}
}

func (n *Net) isCut(a, b string) bool {
	return a != b && (n.isolated[a] || n.isolated[b] || n.cuts[pair(a, b)])
}

func pair(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

func opError(op, from, to string, err error) error {
	e := &net.OpError{Op: op, Net: "pipe", Addr: Addr(to), Err: err}
	if from != "" {
		e.Source = Addr(from)
	}
	return e
}

// listener queues the far ends of dialled connections.
type listener struct {
	net   *Net
	addr  Addr
	queue chan *Conn
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done: // it wins over whatever is still queued
	default:
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.done:
		}
	}
	return nil, opError("accept", "", string(l.addr), net.ErrClosed)
}

func (l *listener) Close() error {
	l.net.mu.Lock()
	select {
	case <-l.done:
		l.net.mu.Unlock()
		return opError("close", "", string(l.addr), net.ErrClosed)
	default:
	}
	close(l.done)
	if l.net.listeners[string(l.addr)] == l {
		delete(l.net.listeners, string(l.addr))
	}
	l.net.mu.Unlock()
	for {
		select {
		case c := <-l.queue:
			c.kill()
		default:
			return nil
		}
	}
}

func (l *listener) Addr() net.Addr { return l.addr }
