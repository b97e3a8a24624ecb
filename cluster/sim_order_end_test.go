package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestOrderEndsWithItsRequester kills and cuts off the node by which an attached order
// was asked for, which has no part in it.
func TestOrderEndsWithItsRequester(t *testing.T) {
	for role, faults := range map[string][]string{
		"agent": {"killed", "cut", "hung up"}, "follower": {"killed"}, "leader": {"killed", "cut"},
	} {
		for _, fault := range faults {
			t.Run(role+" "+fault, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newOrderSim(t, 3, 2)
					defer s.close()
					by := map[string]*Node{"agent": s.nodes["agent1"], "follower": s.follower(), "leader": s.leader()}[role]
					other := s.nodes["agent2"]
					id := s.open(by, OrderRequest{Action: "freeze", Nodes: []string{"agent2"}, Attached: true, TimeoutMS: -1})
					s.reach(other, id, fsm.OrderFrozen)
					time.Sleep(3 * time.Second)
					if len(s.frozen()) != 1 {
						t.Fatal("it has ended by itself")
					}
					from := time.Now()
					want := fmt.Sprintf("node %s, by which it was asked for, has gone", by.Name())
					switch fault {
					case "killed":
						s.kill(by)
					case "cut":
						s.net.Isolate(s.addr(by.Name()))
					default:
						by.AbandonOrder(id)
						want = "who had asked for it has gone"
					}
					s.until("it to thaw", func() bool { return len(s.frozen()) == 0 })
					took := time.Since(from)
					if took > peerSilence+4*time.Second {
						t.Errorf("thawed after %v", took)
					}
					if role == "leader" && fault == "cut" {
						// Nobody can be told before there is another leader, by when the other
						// node has been alone for too long.
						s.net.Heal()
						s.reach(other, id, fsm.OrderClosed)
						return
					}
					s.closed(other, id, fsm.OrderRequester, want)
					s.net.Heal()
				})
			})
		}
	}
}

// TestOrderDeadline counts an order's time at its nodes and in the table, and once with
// nodes that do not count.
func TestOrderDeadline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		n := s.nodes["agent1"]
		const span = 6 * time.Second
		r := freezeAll()
		r.TimeoutMS = span.Milliseconds()
		for _, counted := range []bool{true, false} {
			id := s.open(n, r)
			s.reach(n, id, fsm.OrderFrozen)
			if !counted {
				for _, x := range s.execs {
					x.mu.Lock()
					for _, f := range x.spans {
						f.timer.Stop()
					}
					x.mu.Unlock()
				}
			}
			o := s.closed(n, id, fsm.OrderDeadline, "its time was over")
			for name, x := range s.execs {
				list := x.freezes()
				f := list[len(list)-1]
				if took := f.thawed.Sub(f.frozen); took < span-100*time.Millisecond || took > span+500*time.Millisecond {
					t.Errorf("%s was frozen for %v", name, took)
				}
			}
			if took := time.Duration(o.EndedMS-o.FrozenMS) * time.Millisecond; took < span-time.Second || took > span+time.Second {
				t.Errorf("%+v", o)
			}
		}
		// A node that never says that it is ready.
		release := s.execs["n2"].hold("prepare")
		s.closed(n, s.open(n, r), fsm.OrderFailed, "not ready within 60 s: n2")
		release()
		// One that takes longer than its order gives it.
		release = s.execs["n2"].hold("freeze")
		slow := OrderRequest{Action: "checkpoint", Nodes: []string{"n2"}, TimeoutMS: -1, WithinMS: 5000}
		s.closed(n, s.open(n, slow), fsm.OrderFailed, "not done within 5 s: n2")
		release()
	})
}

// TestOrderUnderALock breaks the lock of one order, and has another one release its own
// when it is closed.
func TestOrderUnderALock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		n := s.nodes["agent1"]
		acquire := func(owner string) uint64 {
			t.Helper()
			_, res, err := n.Acquire(t.Context(), fsm.Acquire{Owner: owner, Locks: []string{"x"}, Block: true}, func(fsm.Event) {})
			if err != nil || res.Code != fsm.Granted {
				t.Fatalf("%+v, %v", res, err)
			}
			return uint64(res.Fence)
		}
		r := freezeAll()
		r.Fence = acquire("ann")
		id := s.open(n, r)
		s.reach(n, id, fsm.OrderFrozen)
		if _, err := n.Submit(t.Context(), fsm.Break{Locks: []string{"x"}, By: "root"}); err != nil {
			t.Fatal(err)
		}
		s.closed(n, id, fsm.OrderLock, fmt.Sprint("fence ", r.Fence))

		r.Fence, r.ReleaseLock = acquire("bob"), true
		release := s.execs["n3"].hold("thaw")
		id = s.open(n, r)
		s.reach(n, id, fsm.OrderFrozen)
		if _, err := n.Submit(t.Context(), fsm.OrderEnd{Order: fsm.OrderID(id), By: "bob", Reason: fsm.OrderThawed}); err != nil {
			t.Fatal(err)
		}
		s.reach(n, id, fsm.OrderThawing)
		time.Sleep(5 * time.Second)
		if res, err := n.Status(t.Context(), "bob", []string{"x"}); err != nil || res.Code != fsm.Granted {
			t.Errorf("released while a node is frozen: %+v, %v", res, err)
		}
		release()
		s.closed(n, id, fsm.OrderThawed, "bob")
		if res, err := n.Status(t.Context(), "bob", []string{"x"}); err != nil || res.Code != fsm.Done {
			t.Errorf("still held: %+v, %v", res, err)
		}
	})
}

// TestOrderEndsWhenANodeStops stops nodes in good order, kills them, and has them
// started anew at once.
func TestOrderEndsWhenANodeStops(t *testing.T) {
	for _, tc := range []struct {
		name, node string
		stop       func(s *orderSim, n *Node)
		want       fsm.OrderReason
	}{
		{"server stops", "", (*orderSim).stop, fsm.OrderNodeLeft},
		{"server dies", "", (*orderSim).kill, fsm.OrderNodeAway},
		{"leader dies", "leader", (*orderSim).kill, fsm.OrderNodeAway},
		{"agent is started anew", "agent1", (*orderSim).again, fsm.OrderNodeAway},
		{"server is started anew", "", (*orderSim).again, fsm.OrderNodeAway},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newOrderSim(t, 3, 1)
				defer s.close()
				n := s.nodes[tc.node]
				by := s.leader()
				switch {
				case tc.node == "leader":
					n, by = by, s.follower()
				case n == nil:
					n = s.follower()
				}
				id := s.open(by, OrderRequest{Action: "freeze", All: true, TimeoutMS: -1})
				s.reach(by, id, fsm.OrderFrozen)
				from := time.Now()
				tc.stop(s, n)
				s.until("all to thaw", func() bool { return len(s.frozen()) == 0 })
				within := 500*time.Millisecond + handover
				if tc.node == "leader" {
					within = time.Second // the next one knows that it has died, and waits for nothing
				}
				if took := time.Since(from); took > within {
					t.Errorf("thawed after %v", took)
				}
				if tc.want == fsm.OrderNodeAway && s.nodes[n.Name()] == nil {
					// Nobody has said that it has thawed.
					if o := s.reach(by, id, fsm.OrderThawing); !slices.Contains(o.Nodes, OrderNode{Node: n.Name(), State: "unknown", Text: "3 processes"}) {
						t.Errorf("%+v", o)
					}
				}
				s.closed(by, id, tc.want, n.Name())
				// The next order finds who is there.
				s.joined()
				r := freezeAll()
				r.All, r.Nodes = false, slices.Sorted(maps.Keys(s.nodes))
				id = s.open(by, r)
				if o := s.reach(by, id, fsm.OrderFrozen); len(o.Nodes) != len(s.nodes) {
					t.Errorf("%+v", o)
				}
				if _, err := by.Thaw(t.Context(), ThawRequest{ID: id}, "ann"); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// stop ends a node in good order.
func (s *orderSim) stop(n *Node) {
	s.t.Helper()
	if err := n.Close(context.Background()); err != nil {
		s.t.Error(err)
	}
	delete(s.nodes, n.Name())
}

// again kills a node and starts it anew.
func (s *orderSim) again(n *Node) {
	s.kill(n)
	s.start(n.Name())
}

// TestOrderInASnapshot cuts a server off that has no part in an order, until it has to be
// sent a snapshot, and then has it lead.
func TestOrderInASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		leader, cut := s.leader(), s.follower()
		for _, n := range s.nodes {
			if n.raft == nil {
				continue
			}
			rc := n.raft.ReloadableConfig()
			rc.TrailingLogs = 1
			if err := n.raft.ReloadConfig(rc); err != nil {
				t.Fatal(err)
			}
		}
		s.net.Isolate(cut.addr)
		id := s.open(leader, OrderRequest{Action: "freeze", Nodes: []string{"agent1"}, TimeoutMS: -1})
		s.reach(leader, id, fsm.OrderFrozen)
		for i := range 20 {
			if _, err := leader.Submit(t.Context(), fsm.Release{Owner: fmt.Sprint(i), Locks: []string{"x"}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := leader.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		s.net.Heal()
		// It follows the order, from the snapshot on.
		s.reach(cut, id, fsm.OrderFrozen)
		s.until("the hand-over", func() bool {
			_, err := leader.Transfer(t.Context(), cut.Name())
			return err == nil
		})
		s.until("the office", func() bool { return cut.office.Load() != nil })
		time.Sleep(5 * time.Second)
		if len(s.frozen()) != 1 {
			t.Error("it has ended by itself")
		}
		if _, err := leader.Thaw(t.Context(), ThawRequest{ID: id}, "ann"); err != nil {
			t.Fatal(err)
		}
		s.closed(cut, id, fsm.OrderThawed, "ann")
	})
}

// TestOrdersAreQuiet: a cluster with a frozen node writes nothing but its time, and one
// without orders asks nothing about them.
func TestOrdersAreQuiet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		n := s.leader()
		id := s.open(n, OrderRequest{Action: "freeze", All: true, TimeoutMS: -1})
		s.reach(n, id, fsm.OrderFrozen)
		index := n.replica.appliedIndex()
		time.Sleep(10 * time.Second)
		if now := n.replica.appliedIndex(); now != index {
			t.Errorf("%d entries in 10 s", now-index)
		}
		if _, err := n.Thaw(t.Context(), ThawRequest{ID: id}, "ann"); err != nil {
			t.Fatal(err)
		}
		s.until("the nodes to come to rest", func() bool {
			for _, n := range s.nodes {
				n.orders.mu.Lock()
				busy := n.orders.watching || len(n.orders.duties) > 0
				n.orders.mu.Unlock()
				if busy {
					return false
				}
			}
			return true
		})
	})
}

// TestOrderLease looks at what keeps a guard from thawing: renewals come as long as the
// node is in touch, and when it is cut off no more do. If it then hangs, the guard thaws.
func TestOrderLease(t *testing.T) {
	for _, role := range []string{"agent", "leader"} {
		t.Run(role, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newOrderSim(t, 3, 1)
				defer s.close()
				n := map[string]*Node{"agent": s.nodes["agent1"], "leader": s.leader()}[role]
				x, grace := s.execs[n.Name()], n.cfg.OrderGrace
				id := s.open(s.follower(), OrderRequest{Action: "freeze", All: true, TimeoutMS: -1})
				s.reach(s.follower(), id, fsm.OrderFrozen)
				for range 10 {
					time.Sleep(grace)
					f := x.freezes()[0]
					if since := time.Since(f.renewed); !x.isFrozen() || since > grace/2 {
						t.Fatalf("in touch: frozen is %v, renewed %v ago, cause %q", x.isFrozen(), since, f.cause)
					}
				}
				release := x.hold("thaw") // the node would do it itself
				from := time.Now()
				s.net.Isolate(s.addr(n.Name()))
				s.until("the guard to thaw", func() bool { return !x.isFrozen() })
				f := x.freezes()[0]
				if f.cause != "quorum" || f.renewed.After(from.Add(10*time.Millisecond)) {
					t.Errorf("thawed because of %q, renewed %v after the cut", f.cause, f.renewed.Sub(from))
				}
				if took := f.thawed.Sub(from); took <= grace || took > f.task.Lease+10*time.Millisecond {
					t.Errorf("thawed after %v", took)
				}
				release()
				s.net.Heal()
				o := s.reach(s.nodes["agent1"], id, fsm.OrderClosed)
				for _, p := range o.Nodes {
					if p.Node == n.Name() && p.Cause != "quorum" && p.Cause != "gone" {
						t.Errorf("%+v", p)
					}
				}
			})
		})
	}
}
