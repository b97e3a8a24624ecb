package cluster

import (
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
