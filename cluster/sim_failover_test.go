package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// simWaiter queues for one lock through one node and records what it is told.
type simWaiter struct {
	owner string
	node  *Node

	mu     sync.Mutex
	events []fsm.Event
	told   chan struct{}
}

func (w *simWaiter) notify(e fsm.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	if len(w.events) == 1 {
		close(w.told)
	}
}

// fence waits for the grant and returns its fence.
func (w *simWaiter) fence(ctx context.Context, t *testing.T) fsm.Fence {
	t.Helper()
	select {
	case <-w.told:
	case <-ctx.Done():
		t.Fatalf("%s by %s: grant lost", w.owner, w.node.Name())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) != 1 || w.events[0].Kind != fsm.EventGranted {
		t.Fatalf("%s: told %+v", w.owner, w.events)
	}
	return w.events[0].Fence
}

// TestSimulatedFailovers isolates the leader again and again while clients have
// connections to every node and wait for one lock, and checks that each of them
// reads its grant, once, in turn; those of the isolated node after the others, when
// they can be told.
func TestSimulatedFailovers(t *testing.T) {
	const perNode = 2
	rounds := rounds(500)
	began := time.Now()
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0)
		s.serveClients()
		s.grow(3)
		defer s.close()
		ctx, cancel := context.WithTimeout(context.Background(), 24*time.Hour)
		defer cancel()
		var last fsm.Fence
		for round := range rounds {
			last = simRound(ctx, t, s, round, perNode, last)
		}
		s.converge()
	})
	t.Logf("%d rounds in %v", rounds, time.Since(began))
}

func simRound(ctx context.Context, t *testing.T, s *sim, round, perNode int, last fsm.Fence) fsm.Fence {
	old := s.leader()
	holder := s.dial(ctx, old.Name(), fmt.Sprint("holder", round))
	holder.send("LOCK\n")
	rises := func(c *lineClient, fence fsm.Fence) {
		if fence <= last {
			t.Fatalf("round %d: %s granted with fence %d after %d", round, c.owner, fence, last)
		}
		last = fence
	}
	rises(holder, holder.granted(false))

	var queue []*lineClient
	for i := range perNode {
		for _, p := range s.peers {
			c := s.dial(ctx, p.ID, fmt.Sprintf("w%d.%d.%s", round, i, p.ID))
			queue = append(queue, c)
			c.queue(holder.owner, len(queue))
		}
	}

	s.net.Isolate(old.cfg.Name + ":1")
	var leader *Node
	for leader == nil {
		for _, n := range s.nodes {
			if n != old && n.office.Load() != nil {
				leader = n
			}
		}
		time.Sleep(10 * time.Millisecond)
		if ctx.Err() != nil {
			t.Fatalf("round %d: no new leader", round)
		}
	}
	s.table(ctx, leader, func(table Table) bool { return len(table.Away) == perNode })
	// The holder's node is cut off, so it comes to another one to release.
	elsewhere := s.dial(ctx, leader.Name(), holder.owner)
	cutOff := func(c *lineClient) bool { return c.node == old.Name() }
	slices.SortStableFunc(queue, func(a, b *lineClient) int { return truth(cutOff(a)) - truth(cutOff(b)) })
	elsewhere.release(queue[0].owner)
	healed := false
	for i, c := range queue {
		if !healed && cutOff(c) {
			s.net.Heal()
			healed = true
		}
		rises(c, c.granted(true))
		next := ""
		if i+1 < len(queue) && (healed || !cutOff(queue[i+1])) {
			next = queue[i+1].owner
		}
		c.release(next)
	}
	for _, c := range append(queue, holder, elsewhere) {
		c.end()
	}
	return last
}

func truth(v bool) int {
	if v {
		return 1
	}
	return 0
}

// converge checks that all replicas come to hold the same.
func (s *sim) converge() {
	s.t.Helper()
	digests := make(map[uint64]bool)
	for range 1000 {
		clear(digests)
		for _, n := range s.nodes {
			if n.replica != nil {
				n.replica.view(func(m *fsm.Machine) { digests[m.Digest()] = true })
			}
		}
		if len(digests) == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Errorf("replicas differ: %d digests", len(digests))
}

// TestSimulatedCrash kills the leader's process, which resets its connections, and
// checks that the others elect a new one long before a heartbeat is missed, and
// that a client which waits at a follower gets its grant from that one.
func TestSimulatedCrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		for round := range 20 {
			old := s.leader()
			var follower *Node
			for _, n := range s.nodes {
				if n != old {
					follower = n
				}
			}
			owner := fmt.Sprintf("w%d", round)
			// Time for every node to have linked with every other.
			time.Sleep(10 * time.Second)
			died := time.Now()
			s.net.Kill(old.cfg.Name + ":1")
			_, res, err := follower.Acquire(ctx, fsm.Acquire{Owner: owner, Locks: []string{"x"}}, func(fsm.Event) {})
			if err != nil || res.Code != fsm.Granted {
				t.Fatalf("round %d: %+v, %v", round, res, err)
			}
			if took := time.Since(died); took > 500*time.Millisecond {
				t.Errorf("round %d: %v from the crash to the next grant", round, took)
			}
			if _, err := follower.Submit(ctx, fsm.Release{Owner: owner, Locks: []string{"x"}}); err != nil {
				t.Fatalf("round %d: release: %v", round, err)
			}
			if err := old.Close(ctx); err != nil {
				t.Fatalf("round %d: close: %v", round, err)
			}
			s.start(old.cfg.Name)
		}
		s.converge()
	})
}
