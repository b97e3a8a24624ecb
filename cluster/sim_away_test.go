package cluster

import (
	"context"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestSimulatedGhostPlace has a lock come free while a place in its queue is kept for a
// client that never comes again, as its node has died: with that node, and with all of
// them. Nobody would be told of a grant to that place, and nothing would end it.
func TestSimulatedGhostPlace(t *testing.T) {
	for name, tc := range map[string]struct{ all bool }{"its node dies": {}, "all nodes die": {all: true}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 3)
				defer s.close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				gone, leader := s.follower(), s.leader()
				simAcquire(ctx, t, leader, "ann", fsm.Granted)
				simAcquire(ctx, t, gone, "bob", fsm.Queued)
				simAcquire(ctx, t, leader, "cat", fsm.Queued)
				for id, n := range s.nodes {
					if n == gone || tc.all {
						s.net.Kill(id + ":1")
						if err := n.Close(ctx); err != nil {
							t.Fatal(err)
						}
						delete(s.nodes, id)
					}
				}
				if tc.all {
					for _, p := range s.peers {
						s.start(p.ID)
					}
				}
				leader = s.leader()
				table := s.table(ctx, leader, func(table Table) bool { return len(table.Away) > 0 })
				if !table.Away[table.Waits[0].Ticket] || table.Away[table.Waits[1].Ticket] != tc.all {
					t.Errorf("passed over: %v", table.Away)
				}
				next := "cat"
				if tc.all {
					next = ""
				}
				res, err := leader.Submit(ctx, fsm.Release{Owner: "ann", Locks: []string{"x"}})
				if err != nil || res.Code != fsm.Done || res.Owner != next {
					t.Fatalf("release: %+v, %v", res, err)
				}
				if _, err := leader.Submit(ctx, fsm.Release{Owner: "cat", Locks: []string{"x"}}); err != nil {
					t.Fatal(err)
				}
				simAcquire(ctx, t, leader, "dan", fsm.Granted)
				// In the end the place is over, too.
				s.table(ctx, leader, func(table Table) bool { return len(table.Waits) == 0 && len(table.Holds) == 1 })
			})
		})
	}
}

// TestSimulatedPlaceIsKept cuts off the node of a client that is next, for less time
// than its place is kept: others pass it, and it is first again when its node is back.
func TestSimulatedPlaceIsKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cut, leader := s.follower(), s.leader()
		simAcquire(ctx, t, leader, "ann", fsm.Granted)
		next := simAcquire(ctx, t, cut, "bob", fsm.Queued)
		passes := simAcquire(ctx, t, leader, "cat", fsm.Queued)
		simAcquire(ctx, t, leader, "dan", fsm.Queued)
		s.net.Isolate(cut.Name() + ":1")
		s.table(ctx, leader, func(table Table) bool { return len(table.Away) == 1 })
		release := func(owner, next string) {
			t.Helper()
			res, err := leader.Submit(ctx, fsm.Release{Owner: owner, Locks: []string{"x"}})
			if err != nil || res.Owner != next {
				t.Fatalf("release of %s: %+v, %v", owner, res, err)
			}
		}
		release("ann", "cat")
		fence := passes.fence(ctx, t)
		s.net.Heal()
		s.table(ctx, leader, func(table Table) bool { return len(table.Away) == 0 })
		release("cat", "bob")
		if f := next.fence(ctx, t); f != fence+1 {
			t.Errorf("fence %d after %d", f, fence)
		}
	})
}

// TestSimulatedIdleClusterWritesNothing makes sure that who is in touch is told when it
// changes, and at no other time.
func TestSimulatedIdleClusterWritesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for _, n := range s.nodes {
			simAcquire(ctx, t, n, n.Name(), 0)
		}
		time.Sleep(20 * time.Second)
		index := s.leader().replica.appliedIndex()
		time.Sleep(time.Minute)
		if now := s.leader().replica.appliedIndex(); now != index {
			t.Errorf("%d entries in a minute", now-index)
		}
	})
}

// simAcquire asks for the lock x; 0 stands for granted or queued.
func simAcquire(ctx context.Context, t *testing.T, n *Node, owner string, want fsm.Code) *simWaiter {
	t.Helper()
	w := &simWaiter{owner: owner, node: n, told: make(chan struct{})}
	_, res, err := n.Acquire(ctx, fsm.Acquire{Owner: owner, Locks: []string{"x"}, Block: true}, w.notify)
	if err != nil || want != 0 && res.Code != want {
		t.Fatalf("%s by %s: %+v, %v", owner, n.Name(), res, err)
	}
	return w
}

// table waits for the table to be as it should.
func (s *sim) table(ctx context.Context, n *Node, good func(Table) bool) Table {
	s.t.Helper()
	for {
		table, err := n.Table(ctx, false)
		if err != nil {
			s.t.Fatal(err)
		}
		if good(table) {
			return table
		}
		time.Sleep(10 * time.Millisecond)
	}
}
