package transport

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Mux shares one listener between protocols: the first byte that a connection
// sends says whose it is. Each protocol gets a net.Listener of its own, and the
// first byte is taken off before it sees the connection.
//
// Invariant: every connection that a Mux accepted and nobody has closed yet is
// closed by [Mux.Close], whoever holds it by then.
type Mux struct {
	// FirstByteTimeout is how long a connection may take to say what it is.
	// Lower cuts off slow links, higher lets idle connections take up places.
	FirstByteTimeout time.Duration

	// MaxPending bounds the connections that have not said what they are or that
	// nobody has accepted yet; further ones are closed at once.
	MaxPending int

	ln   net.Listener
	done chan struct{}  // closed by Close
	wg   sync.WaitGroup // one a pending connection

	mu      sync.Mutex
	closed  bool
	pending int
	subs    map[byte]*muxListener
	conns   map[*muxConn]struct{}

	strangers, silent, refused atomic.Uint64
}

// MuxStats counts connections that reached no protocol.
type MuxStats struct {
	Strangers uint64 // their first byte is nobody's
	Silent    uint64 // they closed or said nothing in time
	Refused   uint64 // MaxPending was reached
}

// NewMux makes a Mux over ln, which it owns from then on.
func NewMux(ln net.Listener) *Mux {
	return &Mux{
		FirstByteTimeout: 10 * time.Second,
		MaxPending:       1024,
		ln:               ln,
		done:             make(chan struct{}),
		subs:             map[byte]*muxListener{},
		conns:            map[*muxConn]struct{}{},
	}
}

// Listen gives the connections that begin with the byte first. It must be called
// before [Mux.Serve], and once for a byte: two owners are a mistake in the program.
// Closing that listener turns later connections of its kind away.
func (m *Mux) Listen(first byte) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.subs[first] != nil {
		panic("transport: two listeners for one first byte")
	}
	l := &muxListener{mux: m, first: first, ch: make(chan net.Conn), done: make(chan struct{})}
	m.subs[first] = l
	return l
}

// Stats may be called at any time.
func (m *Mux) Stats() MuxStats {
	return MuxStats{Strangers: m.strangers.Load(), Silent: m.silent.Load(), Refused: m.refused.Load()}
}

// Serve accepts connections until [Mux.Close], when it returns nil, or until the
// listener fails for good. Running out of descriptors is not for good.
func (m *Mux) Serve() error {
	var delay time.Duration
	for {
		c, err := m.ln.Accept()
		if err == nil {
			delay = 0
			m.admit(c)
			continue
		}
		select {
		case <-m.done:
			return nil
		default:
		}
		if !passing(err) {
			return err
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-m.done:
			t.Stop()
			return nil
		}
	}
}

// passing tells the errors of accept(2) that are about one connection or about a
// shortage from those that are about the listener.
func passing(err error) bool {
	for _, e := range []error{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (m *Mux) admit(raw net.Conn) {
	c := &muxConn{Conn: raw, mux: m}
	m.mu.Lock()
	full := m.pending >= m.MaxPending
	if m.closed || full {
		m.mu.Unlock()
		if full {
			m.refused.Add(1)
		}
		raw.Close()
		return
	}
	m.pending++
	m.conns[c] = struct{}{}
	m.wg.Add(1)
	m.mu.Unlock()
	go m.greet(c)
}

// greet reads the first byte and hands the connection to its protocol.
func (m *Mux) greet(c *muxConn) {
	defer m.wg.Done()
	defer func() {
		m.mu.Lock()
		m.pending--
		m.mu.Unlock()
	}()
	var b [1]byte
	c.SetReadDeadline(time.Now().Add(m.FirstByteTimeout))
	if _, err := c.Read(b[:]); err != nil {
		m.silent.Add(1)
		c.Close()
		return
	}
	c.SetReadDeadline(time.Time{})
	m.mu.Lock()
	l := m.subs[b[0]]
	m.mu.Unlock()
	if l == nil {
		m.strangers.Add(1)
		c.Close()
		return
	}
	select {
	case l.ch <- c:
	case <-l.done:
		c.Close()
	case <-m.done:
		c.Close()
	}
}

// Close closes the listener and every connection that came in by it, and waits
// until no goroutine of the Mux touches one.
func (m *Mux) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		m.wg.Wait()
		return nil
	}
	m.closed = true
	close(m.done)
	open := make([]*muxConn, 0, len(m.conns))
	for c := range m.conns {
		open = append(open, c)
	}
	m.mu.Unlock()
	err := m.ln.Close()
	for _, c := range open {
		c.Close()
	}
	m.wg.Wait()
	return err
}

// muxConn is an accepted connection that its Mux can find again.
type muxConn struct {
	net.Conn
	mux *Mux
}

// NetConn gives the connection underneath, for options of its own kind.
func (c *muxConn) NetConn() net.Conn { return c.Conn }

func (c *muxConn) Close() error {
	c.mux.mu.Lock()
	delete(c.mux.conns, c)
	c.mux.mu.Unlock()
	return c.Conn.Close()
}

// muxListener is one protocol's share of the listener.
type muxListener struct {
	mux   *Mux
	first byte
	ch    chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *muxListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
	case <-l.mux.done:
	}
	return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

func (l *muxListener) Close() error {
	l.once.Do(func() {
		l.mux.mu.Lock()
		delete(l.mux.subs, l.first)
		l.mux.mu.Unlock()
		close(l.done)
	})
	return nil
}

func (l *muxListener) Addr() net.Addr { return l.mux.ln.Addr() }
