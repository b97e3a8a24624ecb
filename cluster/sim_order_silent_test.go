package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// oneWay is a fault that a network of pipes does not have: what one host dials to
// another breaks, and what that one dials lives on.
type oneWay struct {
	mu    sync.Mutex
	lost  [][2]string // from, to
	conns map[[2]string][]net.Conn
}

func (w *oneWay) dialer(from string, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		w.mu.Lock()
		cut := slices.Contains(w.lost, [2]string{from, to})
		w.mu.Unlock()
		if cut {
			return nil, syscall.ETIMEDOUT
		}
		conn, err := dial(ctx, to)
		if err == nil {
			w.mu.Lock()
			w.conns[[2]string{from, to}] = append(w.conns[[2]string{from, to}], conn)
			w.mu.Unlock()
		}
		return conn, err
	}
}

func (w *oneWay) cut(from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = append(w.lost, [2]string{from, to})
	for _, conn := range w.conns[[2]string{from, to}] {
		_ = conn.Close()
	}
}

func (w *oneWay) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = nil
}

// TestOrderEndsForASilentNode loses what the leader dials to a server while all are
// frozen, so that it hears no heartbeats; its own connection to the leader lives on. It
// thaws by itself, and the others do not wait for it.
func TestOrderEndsForASilentNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := &oneWay{conns: make(map[[2]string][]net.Conn)}
		s := newOrderSimWith(t, 3, 1, func(cfg *Config) { cfg.Dial = w.dialer(cfg.Name+":1", cfg.Dial) })
		defer s.close()
		leader, cut := s.leader(), s.follower()
		id := s.open(leader, OrderRequest{Action: "freeze", All: true, TimeoutMS: -1})
		s.reach(leader, id, fsm.OrderFrozen)
		time.Sleep(10 * time.Second) // who asks is not silent
		if got := s.frozen(); len(got) != 4 {
			t.Fatalf("frozen: %v", got)
		}
		w.cut(s.addr(leader.Name()), s.addr(cut.Name()))
		from := time.Now()
		s.until("the node to thaw", func() bool { return !s.execs[cut.Name()].isFrozen() })
		if !leader.peers.inTouch(cut.ledger.incarnation()) {
			t.Fatal("its link to the leader is lost too: this tests nothing")
		}
		s.until("all to thaw", func() bool { return len(s.frozen()) == 0 })
		if took := time.Since(from); took > 3*leader.cfg.OrderGrace+2*reapEvery {
			t.Errorf("all thawed after %v", took)
		}
		w.heal()
		o := s.closed(leader, id, fsm.OrderNodeAway, fmt.Sprintf("node %s is out of touch", cut.Name()))
		for _, p := range o.Nodes {
			if p.Node == cut.Name() && p.Cause != "quorum" {
				t.Errorf("%+v", p)
			}
		}
	})
}

// TestOrderAwaitsItsNodes has the leader die while a node of an order is about to dial the
// other servers anew: it lives on, and so does the order. If that node has died as well,
// the order ends, but not before the node would have thawed by itself.
func TestOrderAwaitsItsNodes(t *testing.T) {
	for _, comes := range []bool{true, false} {
		t.Run(fmt.Sprint("comes ", comes), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := &oneWay{conns: make(map[[2]string][]net.Conn)}
				s := newOrderSimWith(t, 3, 1, func(cfg *Config) { cfg.Dial = w.dialer(cfg.Name+":1", cfg.Dial) })
				defer s.close()
				old, n, agent := s.leader(), s.follower(), s.nodes["agent1"]
				id := s.open(n, OrderRequest{Action: "freeze", Nodes: []string{n.Name(), "agent1"}, TimeoutMS: -1})
				s.reach(n, id, fsm.OrderFrozen)
				inc := agent.ledger.incarnation()
				for _, f := range s.nodes {
					if f != old && !f.cfg.Agent {
						w.cut("agent1:1", s.addr(f.Name()))
						s.until("the link to end", func() bool { return !f.peers.inTouch(inc) })
					}
				}
				s.kill(old)
				s.until("another leader", func() bool { return n.leader().ID != "" && n.leader().ID != old.id })
				from := time.Now()
				if !comes {
					s.until("the order to end", func() bool { return len(s.frozen()) == 0 })
					if took := time.Since(from); took > 2*n.cfg.OrderGrace {
						t.Errorf("all thawed after %v", took)
					}
					w.heal()
					s.reach(n, id, fsm.OrderClosed)
					return
				}
				w.heal()
				time.Sleep(2 * n.cfg.OrderGrace)
				if o := s.reach(n, id, fsm.OrderFrozen); len(s.frozen()) != 2 {
					t.Errorf("frozen: %v; %+v", s.frozen(), o)
				}
				if _, err := n.Thaw(t.Context(), ThawRequest{ID: id}, "ann"); err != nil {
					t.Fatal(err)
				}
				s.closed(n, id, fsm.OrderThawed, "ann")
			})
		})
	}
}

// inTouch reports whether an incarnation is connected here.
func (ps *peers) inTouch(inc fsm.Incarnation) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.by[inc] != nil
}
