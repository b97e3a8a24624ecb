package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// nearby stands in for gossip: it tells of every server that was ever joined, also
// of those that were removed since and, for all that gossip knows, may run on.
func (c *chaos) nearby() []gossiped {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []gossiped
	for _, id := range slices.Sorted(maps.Keys(c.joined)) {
		list = append(list, gossiped{ID: id, Name: id, Addr: c.addr(id)})
	}
	return list
}

// join starts a server that nobody knows yet.
func (c *chaos) join(id string) {
	c.announce(id)
	c.disks[id] = newSimStores(id)
	c.boot(id)
}

// announce has what stands in for gossip tell of a server.
func (c *chaos) announce(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined[id] = true
}

// vote is a server's standing in Raft's configuration, as the leader has it.
func (c *chaos) vote(id string) (vote, member bool) {
	for _, s := range c.leader().voters() {
		if string(s.ID) == id {
			return s.Suffrage == raft.Voter, true
		}
	}
	return false, false
}

func (c *chaos) await(what string, cond func() bool) {
	c.t.Helper()
	for range 6000 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("waiting for %s", what)
}

func hasEnded(n *Node) bool {
	select {
	case <-n.Done():
		return true
	default:
		return false
	}
}

// employ has clients take and give back locks until idle is called.
func (c *chaos) employ(ctx context.Context, clients int) (idle func()) {
	var running, sweeping sync.WaitGroup
	done := make(chan struct{})
	sweeping.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
				c.sweep(ctx)
			}
		}
	})
	for i := range clients {
		cl := &simClient{chaos: c, rng: rand.New(rand.NewPCG(c.seed, uint64(i)+1)), name: fmt.Sprintf("c%d", i)}
		running.Go(func() { cl.run(ctx) })
	}
	return func() {
		close(c.over)
		running.Wait()
		close(done)
		sweeping.Wait()
	}
}

// TestSimulatedMembership replaces one server after another, the leader, a follower or
// a dead one, while clients take and give back locks and leadership moves, and holds what they are
// told against what a lock service may say. In between all nodes crash, so that what
// was removed has to be remembered from disk.
func TestSimulatedMembership(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newChaos(t, 1, 3, 1)
		defer c.close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		c.leader()
		idle := c.employ(ctx, 6)
		time.Sleep(5 * time.Second)
		for round := 0; round < 9 && !c.stopping() && !t.Failed(); round++ {
			c.replace(ctx, round)
		}
		idle()
		if !t.Failed() {
			c.settle()
		}
		t.Logf("%v", c.check.count)
	})
}

// replace removes a server and has another one join.
func (c *chaos) replace(ctx context.Context, round int) {
	lead := c.leader().id
	victim := lead
	var others []string
	for id, n := range c.nodes {
		if n.raft != nil && id != lead {
			others = append(others, id)
		}
	}
	slices.Sort(others)
	if round%3 > 0 {
		victim = others[c.rng.IntN(len(others))]
	}
	n := c.nodes[victim]
	dead := round%3 == 2
	if dead {
		c.kill(victim)
	}
	by := c.pick(c.rng).Node
	if round == 3 {
		by = n // the leader itself is told
	}
	got, err := by.Remove(ctx, victim, false)
	if err != nil || got.ID != victim {
		c.t.Errorf("round %d: remove %s (leader %s) by %s: %+v, %v", round, victim, lead, by.Name(), got, err)
		return
	}
	if !dead {
		c.await(victim+" to end", func() bool { return hasEnded(n) })
		if !errors.Is(n.Err(), ErrRemoved) {
			c.t.Errorf("round %d: %s ended with %v", round, victim, n.Err())
		}
		c.kill(victim)
	}
	if again, err := c.pick(c.rng).Remove(ctx, victim, false); err != nil || again.ID != victim {
		c.t.Errorf("round %d: removed again: %+v, %v", round, again, err)
	}
	disk := c.disks[victim]
	delete(c.disks, victim)
	if round%4 == 1 {
		for _, n := range c.nodes {
			if n.raft != nil {
				_ = n.raft.Snapshot().Error()
			}
		}
		c.kill(c.ids()...)
		for _, id := range c.ids() {
			c.boot(id)
		}
	}
	// One that did not hear of it, and comes back with its data.
	if dead {
		c.disks[victim] = disk
		c.boot(victim)
		c.await(victim+" to end", func() bool { return hasEnded(c.nodes[victim]) })
		c.kill(victim)
		delete(c.disks, victim)
	}
	id := fmt.Sprintf("n%d", 4+round)
	c.join(id)
	c.await(id+" to get its vote", func() bool { vote, _ := c.vote(id); return vote })
	if _, member := c.vote(victim); member {
		c.t.Errorf("round %d: %s is back", round, victim)
	}
	if len(c.leader().voters()) != 3 {
		c.t.Errorf("round %d: %v", round, c.leader().voters())
	}
	c.check.tally("servers replaced")
}

// A leader that dies between the steps of a removal leaves it to the next one.
func TestSimulatedRemovalIsCompleted(t *testing.T) {
	for _, steps := range []int{1, 2} {
		bubble(t, func(t *testing.T) {
			c := newChaos(t, 1, 4, 0)
			defer c.close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			lead := c.leader()
			time.Sleep(5 * time.Second)
			victim := "n4"
			if lead.id == victim {
				victim = "n1"
			}
			c.announce(victim) // or it could not be taken back
			done, err := lead.turn(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lead.Submit(ctx, fsm.RemoveServer{ID: victim, Name: victim, Addr: c.addr(victim)}); err != nil {
				t.Fatal(err)
			}
			if steps > 1 {
				if err := lead.raft.RemoveServer(raft.ServerID(victim), 0, 0).Error(); err != nil {
					t.Fatal(err)
				}
			}
			c.kill(lead.id)
			done()
			n := c.nodes[victim]
			c.await(victim+" to end", func() bool { return hasEnded(n) })
			if _, member := c.vote(victim); member || !c.leader().removed().out(victim) {
				t.Errorf("after %d steps: member %v, removed %+v", steps, member, c.leader().removed())
			}
			c.boot(lead.id)
			c.await("three voters", func() bool { return len(c.leader().voters()) == 3 })
		})
	}
}

// A server that has lost its data comes back at its address: it is not taken for what
// it was, and is taken in when that is removed.
func TestSimulatedWipedServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newChaos(t, 1, 3, 0)
		defer c.close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		lead := c.leader()
		time.Sleep(5 * time.Second)
		old := "n3"
		if lead.id == old {
			old = "n2"
		}
		c.kill(old)
		delete(c.disks, old)
		wiped := old + "b"
		c.at = map[string]string{wiped: c.addr(old)}
		c.join(wiped)
		time.Sleep(time.Minute)
		if _, member := c.vote(wiped); member {
			t.Error("it was taken in beside what it was")
		}
		if last := c.nodes[wiped].raft.LastIndex(); last != 0 {
			t.Errorf("it has a log of %d entries in the name of %s", last, old)
		}
		for _, n := range c.nodes {
			if note := n.notes()[wiped]; n.id != wiped && !strings.Contains(note, "lockctl remove "+old+",") {
				t.Errorf("%s notes %q of it", n.id, note)
			}
		}
		// Without the other one there is no majority any more.
		for _, n := range c.nodes {
			if n != lead && n.id != wiped {
				var no Refusal
				if _, err := lead.Remove(ctx, n.id, false); !errors.As(err, &no) || !strings.Contains(err.Error(), "--force") {
					t.Errorf("remove %s: %v", n.id, err)
				}
			}
		}
		var no Refusal
		if _, err := lead.Remove(ctx, c.addr(old), false); !errors.As(err, &no) || !strings.Contains(err.Error(), old+" (out of touch) or "+wiped+" (in touch, not in the cluster yet)") {
			t.Errorf("remove by an address that two have: %v", err)
		}
		if _, err := lead.Remove(ctx, old, false); err != nil {
			t.Fatal(err)
		}
		c.await(wiped+" to get its vote", func() bool { vote, _ := c.vote(wiped); return vote })
		c.converge()
	})
}

// A new server gets no vote before it has the log.
func TestSimulatedPromotionWaitsForTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newChaos(t, 1, 3, 0)
		defer c.close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		lead := c.leader()
		time.Sleep(5 * time.Second)
		for i := range 50 {
			owner := fmt.Sprint("o", i)
			if _, err := lead.Submit(ctx, fsm.Acquire{Owner: owner, Locks: []string{owner}}); err != nil {
				t.Fatal(err)
			}
		}
		c.announce("n9")
		c.disks["n9"] = newSimStores("n9")
		c.disks["n9"].Log = &slowLog{LogStore: c.disks["n9"].Log, delay: promoteAfter + 4*time.Second}
		c.boot("n9")
		c.await("n9 to be taken in", func() bool { _, member := c.vote("n9"); return member })
		time.Sleep(promoteAfter + 2*time.Second)
		if vote, _ := c.vote("n9"); vote {
			t.Errorf("n9 has a vote and %d of %d entries", c.nodes["n9"].raft.AppliedIndex(), lead.raft.CommitIndex())
		}
		c.await("n9 to get its vote", func() bool { vote, _ := c.vote("n9"); return vote })
	})
}

// slowLog takes its time for the first write.
type slowLog struct {
	raft.LogStore
	delay time.Duration
}

func (s *slowLog) StoreLogs(logs []*raft.Log) error {
	time.Sleep(s.delay)
	s.delay = 0
	return s.LogStore.StoreLogs(logs)
}

func TestSpare(t *testing.T) {
	servers := func(votes string) (list []namedServer) {
		for i, v := range votes {
			s := raft.Server{ID: raft.ServerID(fmt.Sprint("n", i+1))}
			if v != 'v' {
				s.Suffrage = raft.Nonvoter
			}
			list = append(list, namedServer{Server: s, Member: true})
		}
		return list
	}
	for _, c := range []struct {
		votes, touch string // one character a server
		remove       int
		force, ok    bool
	}{
		{"v", "y", 1, false, false},
		{"v", "y", 1, true, false}, // the last vote is never given up
		{"v-", "yy", 1, true, false},
		{"v-", "yy", 2, false, true},
		{"v-", "y-", 2, false, true},
		{"vv", "yy", 2, false, true},
		{"vvv", "yyy", 3, false, true},
		{"vvv", "yy-", 3, false, true},
		{"vvv", "yy-", 2, false, false},
		{"vvv", "yy-", 2, true, true},
		{"vvvv", "yyy-", 4, false, true},
		{"vvvv", "yyy-", 3, false, true},
		{"vvvvv", "yyy--", 5, false, true},
		{"vvvvv", "yyy--", 1, false, false},
		{"vvvvv-", "yyy--y", 1, false, false}, // one without a vote does not help
	} {
		list := servers(c.votes)
		got := make(map[raft.ServerID]health)
		for i, s := range list {
			if c.touch[i] == 'y' {
				got[s.ID] = health{}
			}
		}
		var no Refusal
		if err := spare(list, list[c.remove-1], got, c.force); (err == nil) != c.ok || err != nil && !errors.As(err, &no) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestStrays(t *testing.T) {
	servers := []raft.Server{{ID: "a", Address: "h1:1"}, {ID: "b", Address: "h2:1"}, {ID: "c", Address: "h3:1"}}
	for _, c := range []struct {
		name string
		near []gossiped
		want string
	}{
		{"all as it should be", []gossiped{{ID: "a", Addr: "h1:1"}, {ID: "b", Addr: "h2:1"}}, "map[]"},
		{"a new one", []gossiped{{ID: "d", Addr: "h4:1"}}, "map[]"},
		{"wiped", []gossiped{{ID: "a", Addr: "h1:1"}, {ID: "d", Addr: "h2:1"}}, "map[d:b]"},
		{"wiped, and the old one not known to be dead yet", []gossiped{{ID: "b", Addr: "h2:1"}, {ID: "d", Addr: "h2:1"}}, "map[d:b]"},
		{"the other one has moved", []gossiped{{ID: "b", Addr: "h5:1"}, {ID: "d", Addr: "h2:1"}}, "map[]"},
		{"it has moved itself", []gossiped{{ID: "b", Addr: "h3:1"}}, "map[]"},
	} {
		if got := fmt.Sprint(strays(servers, c.near)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
