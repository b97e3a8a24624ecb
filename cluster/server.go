package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/transport"
)

// serverConfig is what the server of client connections needs to know.
type serverConfig struct {
	// MaxClients bounds the connections; further ones are told so and closed. The
	// limit on open files may lower it.
	MaxClients int

	// Idle ends a connection that has sent no whole request for this long and
	// neither waits nor wants news of a hold.
	Idle time.Duration

	// WriteTimeout ends a connection that does not take a reply for this long.
	WriteTimeout time.Duration

	// Reachable reports whether this node could answer: false once there has been
	// no leader in reach for a while. Connections are refused then, since an
	// IPC::Locker client walks on to the next host only if the connect fails: TCP
	// and UNIX listeners are closed, and opened again at the same address. What is
	// connected already stays. Nil means always. It must not block.
	Reachable func() bool

	Logger hclog.Logger
}

// Defaults and periods of the server.
const (
	defaultMaxClients   = 200_000
	defaultClientIdle   = 5 * time.Minute
	defaultWriteTimeout = 30 * time.Second
	reachPeriod         = 100 * time.Millisecond // how often Reachable is asked
	reservedFiles       = 64                     // descriptors that are not for clients
	maxRefusals         = 64                     // connections told at one time that there are too many
	acceptPause         = 50 * time.Millisecond  // after a failure to accept, doubled with each
	maxAcceptPause      = time.Second
	moveTime            = 2 * time.Second // for clients to go elsewhere
)

// server accepts client connections and runs a session for each.
//
// Its goroutines: one for each listener, one for each connection, and one that
// closes and reopens the listeners as a leader is in reach. close waits for all.
type server struct {
	cfg      serverConfig
	node     sessionNode
	ctx      context.Context // ends when the sessions must
	cancel   context.CancelFunc
	closing  chan struct{}
	wg       sync.WaitGroup
	refusals chan struct{} // one token for each refusal under way

	mu       sync.Mutex
	ports    []*clientPort
	sessions map[*session]struct{}
	stopped  bool
}

// clientPort is a listener that can be closed and opened again at its address.
type clientPort struct {
	addr   net.Addr
	ln     net.Listener // nil while closed
	failed bool         // to reopen; said in the log once
}

// startServer serves clients on listeners, which the server closes.
func startServer(node sessionNode, listeners []net.Listener, cfg serverConfig) *server {
	if cfg.MaxClients <= 0 {
		cfg.MaxClients = defaultMaxClients
	}
	cfg.MaxClients = min(cfg.MaxClients, fileLimit())
	if cfg.Idle <= 0 {
		cfg.Idle = defaultClientIdle
	}
	if cfg.WriteTimeout <= 0 {
		cfg.WriteTimeout = defaultWriteTimeout
	}
	s := &server{
		cfg:      cfg,
		node:     node,
		closing:  make(chan struct{}),
		refusals: make(chan struct{}, maxRefusals),
		sessions: make(map[*session]struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, ln := range listeners {
		p := &clientPort{addr: ln.Addr(), ln: ln}
		s.ports = append(s.ports, p)
		s.wg.Go(func() { s.accept(ln) })
	}
	if cfg.Reachable != nil {
		s.wg.Go(s.follow)
	}
	return s
}

// fileLimit is how many connections the limit on open files leaves room for.
func fileLimit() int {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<30 {
		return 1 << 30
	}
	return max(int(r.Cur)-int(r.Cur)/16-reservedFiles, 1)
}

// accept serves one listener until it is closed.
func (s *server) accept(ln net.Listener) {
	pause := acceptPause
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			s.admit(conn)
			pause = acceptPause
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of descriptors, most likely; those who connect wait meanwhile.
			s.cfg.Logger.Warn("cannot accept client connections", "address", ln.Addr(), "error", err)
			select {
			case <-time.After(pause):
				pause = min(2*pause, maxAcceptPause)
			case <-s.closing:
				return
			}
		}
	}
}

// admit starts a session, or says why not.
func (s *server) admit(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		// A host that has vanished is noticed within half a minute.
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	ss := newSession(s.ctx, conn, s.node, &s.cfg)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		abort(conn)
	case len(s.sessions) >= s.cfg.MaxClients:
		s.refuse(ss)
	default:
		s.sessions[ss] = struct{}{}
		s.wg.Go(func() {
			ss.serve()
			s.mu.Lock()
			delete(s.sessions, ss)
			s.mu.Unlock()
		})
	}
}

// refuse tells a client that there are too many. When there are too many even of
// those, the connection is reset.
func (s *server) refuse(ss *session) {
	select {
	case s.refusals <- struct{}{}:
	default:
		abort(ss.conn)
		return
	}
	s.wg.Go(func() {
		ss.lastWords(faultf(transport.WordTooMany, "the server has its %d connections", s.cfg.MaxClients))
		ss.conn.Close()
		<-s.refusals
	})
}

// abort resets a connection, so that its client does not take the end for an answer.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// clients is the number of connections.
func (s *server) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// follow closes the listeners while no leader is in reach. Connections that are
// there already stay.
func (s *server) follow() {
	tick := time.NewTicker(reachPeriod)
	defer tick.Stop()
	was := true
	for {
		select {
		case <-tick.C:
		case <-s.closing:
			return
		}
		is := s.cfg.Reachable()
		if is != was {
			s.cfg.Logger.Info("client ports follow the leader's reach", "open", is)
		}
		was = is
		s.openPorts(is)
	}
}

// openPorts opens or closes the listeners that are not so yet.
func (s *server) openPorts(open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	for _, p := range s.ports {
		switch {
		case !open && p.ln != nil && reopens(p.ln):
			p.ln.Close()
			p.ln = nil
		case open && p.ln == nil:
			ln, err := ListenClient(s.ctx, p.addr.Network(), p.addr.String())
			if err != nil {
				if !p.failed {
					s.cfg.Logger.Error("cannot open a client port again; trying on", "address", p.addr, "error", err)
				}
				p.failed = true
				continue
			}
			p.ln, p.failed = ln, false
			s.wg.Go(func() { s.accept(ln) })
		}
	}
}

// reopens reports whether a listener can be had again at its address.
func reopens(ln net.Listener) bool {
	switch ln.(type) {
	case *net.TCPListener, *net.UnixListener:
		return true
	}
	return false
}

// move takes no more connections and ends those there are: it tells clients
// where to go instead, as host:port, and finishes requests under way. It waits
// for them a while, or until ctx ends; those that are left have until close.
func (s *server) move(ctx context.Context, elsewhere []string) {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.closing)
		for _, p := range s.ports {
			if p.ln != nil {
				p.ln.Close()
			}
		}
		for ss := range s.sessions {
			ss.stop(elsewhere)
		}
	}
	s.mu.Unlock()

	over := time.NewTimer(moveTime)
	defer over.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for s.clients() > 0 {
		select {
		case <-poll.C:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// close cuts the connections that move has left.
func (s *server) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.move(ctx, nil)
	s.cancel()
	s.mu.Lock()
	for ss := range s.sessions {
		ss.conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
