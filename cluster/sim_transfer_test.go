package cluster

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// transfer asks any node for another leader, and checks what it is told.
func (c *chaos) transfer(n *Node, to string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	leader, err := n.Transfer(ctx, to)
	switch {
	case err == nil && to != "" && leader != to:
		c.check.fail("%s was asked for %s to lead and says that %s does", n.Name(), to, leader)
	case err == nil:
		c.check.tally("transfers done")
	}
}

// TestSimulatedTransfers moves leadership all the time while clients take and give
// back locks, from every node, to each server and at once from several, and holds what they are
// told against what a lock service may say.
func TestSimulatedTransfers(t *testing.T) {
	rounds := 60
	if raceDetector {
		rounds = 12 // it is slow in a bubble
	}
	bubble(t, func(t *testing.T) {
		c := newChaos(t, 1, 3, 1)
		defer c.close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		c.leader()
		idle := c.employ(ctx, 8)
		time.Sleep(5 * time.Second) // links between all nodes
		for round := 0; round < rounds && !c.stopping(); round++ {
			to := c.peers[round%3].ID
			var moving sync.WaitGroup
			for _, p := range c.peers[:1+round%3] {
				moving.Go(func() { c.transfer(c.nodes[p.ID], p.ID) })
			}
			moving.Wait()
			// Nothing is wrong with any of the servers, so this may not fail.
			began := time.Now()
			if leader, err := c.pick(c.rng).Transfer(ctx, to); err != nil || leader != to {
				t.Errorf("round %d: to %s: %s leads, %v", round, to, leader, err)
				break
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("round %d: it took %v", round, took)
			}
			// In office, or out of it again by a hand-over that raft had begun before.
			if c.nodes[to].office.Load() == nil {
				t.Errorf("round %d: %s was said to be in office and is not", round, to)
			}
			if leader, err := c.pick(c.rng).Transfer(ctx, ""); err != nil || leader == to {
				t.Errorf("round %d: from %s: %s leads, %v", round, to, leader, err)
				break
			}
		}
		idle()
		if !t.Failed() {
			c.settle()
		}
		t.Logf("%v", c.check.count)
	})
}

// A server that cannot be relied on is not made the leader.
func TestSimulatedTransferRefusals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		old := s.leader()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		time.Sleep(5 * time.Second)
		var others []*Node
		for _, n := range s.nodes {
			if n != old {
				others = append(others, n)
			}
		}
		refused := func(to, why string) {
			t.Helper()
			for _, n := range s.nodes {
				var no Refusal
				if leader, err := n.Transfer(ctx, to); !errors.As(err, &no) {
					t.Errorf("asked of %s for %q, %s: %q leads, %v", n.Name(), to, why, leader, err)
				}
			}
			if s.leader() != old {
				t.Fatalf("%q leads", s.leader().Name())
			}
		}
		refused("n9", "which is not there")
		others[0].space.set(true)
		refused(others[0].Name(), "whose disk is full")
		others[1].space.set(true)
		refused("", "though no disk has room")
		if leader, err := others[0].Transfer(ctx, old.Name()); err != nil || leader != old.Name() {
			t.Errorf("to the leader: %q, %v", leader, err)
		}
		others[1].space.set(false)
		leader, err := others[0].Transfer(ctx, "")
		if err != nil || leader != others[1].Name() {
			t.Errorf("to the only one with room: %q, %v", leader, err)
		}
		others[0].space.set(false)

		// Cut off, without a word to anybody.
		old = s.leader()
		for _, n := range s.nodes {
			if n != old {
				s.net.Isolate(n.Name() + ":1")
				began := time.Now()
				var no Refusal
				if _, err := old.Transfer(ctx, n.Name()); !errors.As(err, &no) || time.Since(began) > 2*time.Second {
					t.Errorf("to %s, which is cut off: %v after %v", n.Name(), err, time.Since(began))
				}
				s.net.Heal()
				break
			}
		}
	})
}

func TestPickServer(t *testing.T) {
	list := []namedServer{
		{Server: raft.Server{ID: "a1", Address: "h1:1"}, Name: "n1", Member: true},
		{Server: raft.Server{ID: "a2", Address: "h2:1"}, Name: "n2", Member: true, Up: true},
		{Server: raft.Server{ID: "a3", Address: "h2:1"}, Name: "n2"},
		{Server: raft.Server{ID: "a4", Address: "h4:1"}, Member: true},
		{Server: raft.Server{ID: "a5", Address: "h5:1"}, Name: "a4", Member: true},
	}
	for _, c := range []struct{ what, want string }{
		{"n1", "a1"},
		{"a1", "a1"},
		{"h1:1", "a1"},
		{"a3", "a3"},
		{"a4", "a4"}, // an id goes before a name
		{"n2", "2 servers are called n2: say which by its id, a2 (in touch) or a3 (out of touch, not in the cluster yet)"},
		{"h2:1", "2 servers are called h2:1: say which by its id, a2 (in touch) or a3 (out of touch, not in the cluster yet)"},
		{"n9", "no server is called n9: lockctl status lists the servers"},
		{"", "no server is called : lockctl status lists the servers"},
	} {
		got, err := pick(list, c.what)
		said := string(got.ID)
		if err != nil {
			said = err.Error()
		}
		if said != c.want {
			t.Errorf("%q: %s, want %s", c.what, said, c.want)
		}
	}
}

func TestHeir(t *testing.T) {
	server := func(id string, s raft.ServerSuffrage) namedServer {
		return namedServer{Server: raft.Server{ID: raft.ServerID(id), Suffrage: s}, Member: true}
	}
	list := []namedServer{server("n1", raft.Voter), server("n2", raft.Voter), server("n3", raft.Voter), server("n4", raft.Nonvoter)}
	all := map[raft.ServerID]health{"n1": {Last: 9}, "n2": {Last: 7}, "n3": {Last: 8}, "n4": {Last: 9}}
	with := func(id raft.ServerID, h health) map[raft.ServerID]health {
		got := map[raft.ServerID]health{id: h}
		for k, v := range all {
			if k != id {
				got[k] = v
			}
		}
		return got
	}
	for _, c := range []struct {
		name, to string
		got      map[raft.ServerID]health
		want     string
	}{
		{"longest log", "", all, "n3"},
		{"then by id", "", with("n2", health{Last: 8}), "n2"},
		{"room on the disk", "", with("n3", health{Last: 8, LowDisk: true}), "n2"},
		{"none", "", map[raft.ServerID]health{"n1": {}, "n4": {}}, ""},
		{"named", "n2", all, "n2"},
		{"no vote", "n4", all, ""},
		{"not in touch", "n3", map[raft.ServerID]health{"n1": {}}, ""},
		{"full disk", "n3", with("n3", health{LowDisk: true}), ""},
	} {
		var target namedServer
		if c.to != "" {
			target, _ = pick(list, c.to)
		}
		got, err := heir(list, "n1", target, c.got)
		if c.want == "" && err == nil || c.want != "" && (err != nil || string(got.ID) != c.want) {
			t.Errorf("%s: %s, %v; want %q", c.name, got.ID, err, c.want)
		}
	}
}
