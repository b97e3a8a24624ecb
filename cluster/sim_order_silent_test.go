package cluster

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// oneWay is a fault that a network of pipes does not have: what one host dials to
// another breaks, and what that one dials lives on.
type oneWay struct {
	mu       sync.Mutex
	from, to string
	conns    map[[2]string][]net.Conn
}

func (w *oneWay) dialer(from string, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		w.mu.Lock()
		cut := w.from == from && w.to == to
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
	w.from, w.to = from, to
	for _, conn := range w.conns[[2]string{from, to}] {
		_ = conn.Close()
	}
}

func (w *oneWay) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.from, w.to = "", ""
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

// inTouch reports whether an incarnation is connected here.
func (ps *peers) inTouch(inc fsm.Incarnation) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.by[inc] != nil
}
