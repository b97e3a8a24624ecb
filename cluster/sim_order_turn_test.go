package cluster

import (
	"context"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestOrdersTakeTurns opens two orders for the same thing. A node that is slow with the
// first one does not take up the second one before it: then neither could be carried out.
func TestOrdersTakeTurns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		for _, x := range s.execs {
			x.single = true
		}
		n := s.nodes["n1"]
		slow := s.execs["n2"].hold("prepare 1")
		last := s.execs["n1"].hold("prepare 2")
		r := OrderRequest{Action: "freeze", Nodes: []string{"n1", "n2"}}
		first, second := s.open(n, r), s.open(n, r)
		if first != 1 || second != 2 {
			t.Fatalf("orders %d and %d", first, second)
		}
		time.Sleep(time.Second) // everybody has got as far as they can
		slow()
		s.reach(n, first, fsm.OrderFrozen)
		last()
		if o := s.reach(n, second, fsm.OrderClosed); o.Reason != "failed" {
			t.Errorf("%+v", o)
		}
		s.reach(n, first, fsm.OrderFrozen)
		if _, err := n.Thaw(t.Context(), ThawRequest{ID: first}, "ann"); err != nil {
			t.Fatal(err)
		}
		s.closed(n, first, fsm.OrderThawed, "ann")
	})
}

// TestOrderGoesOnWithoutItsServer has the node die that serves the request for a detached
// order while the nodes get ready: it is in the table, and goes on, to its deadline.
func TestOrderGoesOnWithoutItsServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 2)
		defer s.close()
		by, n := s.nodes["agent2"], s.nodes["agent1"]
		release := s.execs["agent1"].hold("prepare")
		id := s.open(by, OrderRequest{Action: "freeze", Nodes: []string{"agent1"}, TimeoutMS: 10_000})
		s.kill(by)
		release()
		s.reach(n, id, fsm.OrderFrozen)
		time.Sleep(5 * time.Second)
		if len(s.frozen()) != 1 {
			t.Error("it has ended by itself")
		}
		s.closed(n, id, fsm.OrderDeadline, "its time was over")
	})
}

// TestOrdersFreezeInTurn has two orders for the same thing prepared everywhere before one is
// carried out. A node that is slow to freeze for the first one does not for the second one
// before it: another node may have done so for the first, and none would be carried out.
func TestOrdersFreezeInTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 0)
		defer s.close()
		for _, x := range s.execs {
			x.narrow = true
		}
		n := s.nodes["n1"]
		slow, other := s.execs["n1"].hold("freeze 1"), s.execs["n2"].hold("freeze 2")
		r := OrderRequest{Action: "freeze", Nodes: []string{"n1", "n2"}}
		first, second := s.open(n, r), s.open(n, r)
		if first != 1 || second != 2 {
			t.Fatalf("orders %d and %d", first, second)
		}
		time.Sleep(time.Second) // everybody has got as far as they can
		slow()
		s.reach(n, first, fsm.OrderFrozen)
		other()
		if o := s.reach(n, second, fsm.OrderClosed); o.Reason != "failed" {
			t.Errorf("%+v", o)
		}
		s.reach(n, first, fsm.OrderFrozen)
		if _, err := n.Thaw(t.Context(), ThawRequest{ID: first}, "ann"); err != nil {
			t.Fatal(err)
		}
		s.closed(n, first, fsm.OrderThawed, "ann")
	})
}

// slippery are the connections of a node. They can be lost to it alone: the other ends
// hear nothing of that, and what they send is lost.
type slippery struct {
	mu    sync.Mutex
	conns []*slipperyConn
	held  chan struct{} // nobody dials before it is closed; nil for now
}

type slipperyConn struct {
	net.Conn
	lost chan struct{}
}

func (c *slipperyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.lost:
		return 0, syscall.ECONNRESET
	default:
		return n, err
	}
}

func (c *slipperyConn) Close() error {
	select {
	case <-c.lost:
		return nil
	default:
		return c.Conn.Close()
	}
}

func (w *slippery) dialer(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		w.mu.Lock()
		held := w.held
		w.mu.Unlock()
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		conn, err := dial(ctx, to)
		if err != nil {
			return nil, err
		}
		c := &slipperyConn{conn, make(chan struct{})}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns = append(w.conns, c)
		return c, nil
	}
}

// lose loses all connections, and keeps the node from making new ones until the function
// is called that it returns.
func (w *slippery) lose() (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		close(c.lost)
		_ = c.SetReadDeadline(time.Unix(1, 0)) // who reads wakes
	}
	w.held = make(chan struct{})
	return func() { close(w.held) }
}

// drain takes what comes for nobody, to the end of the connections.
func (w *slippery) drain(wg *sync.WaitGroup) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.SetReadDeadline(time.Time{})
		wg.Go(func() {
			_, _ = io.Copy(io.Discard, c.Conn)
			_ = c.Conn.Close()
		})
	}
}

// TestOrdersTakeTurnsAfterALoss loses the word of the first order with a connection whose
// end the leader does not see. The agent is back for the second one, for the same thing: it
// hears of the first one before, as all others did.
func TestOrdersTakeTurnsAfterALoss(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := &slippery{}
		var drains sync.WaitGroup
		defer drains.Wait()
		s := newOrderSimWith(t, 3, 1, func(cfg *Config) {
			if cfg.Name == "agent1" {
				cfg.Dial = w.dialer(cfg.Dial)
			}
		})
		defer s.close()
		for _, x := range s.execs {
			x.single = true
		}
		leader, inc := s.leader(), s.nodes["agent1"].ledger.incarnation()
		link := func() *peer {
			leader.peers.mu.Lock()
			defer leader.peers.mu.Unlock()
			return leader.peers.by[inc]
		}
		old := link()
		release := w.lose()
		w.drain(&drains)
		r := OrderRequest{Action: "freeze", Nodes: []string{"agent1", leader.Name()}}
		first := s.open(leader, r)
		if link() != old {
			t.Fatal("the leader has seen the loss: this tests nothing")
		}
		release()
		s.until("the agent to come back", func() bool { return link() != old && link() != nil })
		last := s.execs[leader.Name()].hold("prepare 2") // nobody else refuses the second one
		second := s.open(leader, r)
		s.reach(leader, first, fsm.OrderFrozen)
		last()
		if o := s.reach(leader, second, fsm.OrderClosed); o.Reason != "failed" {
			t.Errorf("%+v", o)
		}
		if _, err := leader.Thaw(t.Context(), ThawRequest{ID: first}, "ann"); err != nil {
			t.Fatal(err)
		}
		s.closed(leader, first, fsm.OrderThawed, "ann")
	})
}
