package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// follower is some node that does not lead.
func (s *sim) follower() *Node {
	leader := s.leader()
	for _, n := range s.nodes {
		if n != leader {
			return n
		}
	}
	return nil
}

// TestABadCommandOfAFollowerIsRefused proposes through a follower what the wire to
// the leader can't carry. It must be refused before it is sent: the leader would
// end the connection over it, and get it again over the next one, for ever.
func TestABadCommandOfAFollowerIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		n := s.follower()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		long := strings.Repeat("x", fsm.MaxName+1)
		for _, c := range []fsm.Command{
			fsm.Release{Owner: "amy", Locks: []string{long}},
			fsm.Break{Locks: make([]string, fsm.MaxLocks+1), By: "amy"},
			fsm.ProcessGone{Process: fsm.Process{Host: "h", PID: 1}, Fences: make([]fsm.Fence, fsm.MaxNamed+1)},
			fsm.Renew{Owner: strings.Repeat("y", 100_000), Fence: 1},
		} {
			if res, err := n.Submit(ctx, c); err != nil || res.Code != fsm.Refused || res.Reason == "" {
				t.Errorf("%.60v: %+v, %v", c, res, err)
			}
		}
		if _, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{long}}, nil); err != nil || res.Code != fsm.Refused {
			t.Errorf("acquire: %+v, %v", res, err)
		}
		if _, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
			t.Errorf("afterwards: %+v, %v", res, err)
		}
	})
}

// TestLimitsAreNeverEarly asks for a limit at every part of a millisecond, and for a
// lease: neither may end before its time has passed by the client's own clock.
func TestLimitsAreNeverEarly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 1)
		defer s.close()
		n := s.leader()
		const span = 5 * time.Millisecond
		for i := range 40 {
			time.Sleep(time.Millisecond + 25*time.Microsecond)
			over := make(chan time.Time, 1)
			ask := fsm.Acquire{Owner: "amy", Locks: []string{"a"}, Limit: millis(span)}
			if i%2 == 1 {
				ask.Limit, ask.Lease = 0, ask.Limit
			}
			from := time.Now()
			res := n.mustAcquire(t, ask, func(e fsm.Event) { over <- time.Now() })
			if res.Code != fsm.Granted {
				t.Fatalf("%+v", res)
			}
			// Every entry of the log moves the time on.
			for len(over) == 0 {
				time.Sleep(130 * time.Microsecond)
				_, err := n.Submit(t.Context(), fsm.Release{Owner: "bob", Locks: []string{"b"}})
				must(t, err)
			}
			if took := (<-over).Sub(from); took < span || took > span+2*time.Millisecond {
				t.Errorf("round %d: over after %v", i, took)
			}
		}
	})
}

// TestCloseInEveryState closes nodes while calls of all kinds wait, twice at once:
// every call returns, and nothing is left running (the bubble would not end).
func TestCloseInEveryState(t *testing.T) {
	states := []struct {
		name string
		make func(s *sim)
	}{
		{"at once", func(*sim) {}},
		{"during the first election", func(*sim) { time.Sleep(1500 * time.Millisecond) }},
		{"with a leader", func(s *sim) { s.leader() }},
		{"without a quorum", func(s *sim) {
			s.leader()
			for _, p := range s.peers {
				s.net.Isolate(p.Addr)
			}
			time.Sleep(2 * time.Second)
		}},
		{"in the election after a crash", func(s *sim) {
			s.net.Kill(s.leader().addr)
			time.Sleep(time.Millisecond)
		}},
	}
	for _, st := range states {
		t.Run(st.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 3)
				st.make(s)
				var calls, closing sync.WaitGroup
				returned := func(what string, err error) {
					if err == nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrNoLeader) {
						return
					}
					t.Errorf("%s: %v", what, err)
				}
				ctx := context.Background()
				for _, n := range s.nodes {
					calls.Go(func() {
						_, _, err := n.Acquire(ctx, fsm.Acquire{Owner: n.Name(), Locks: []string{"a"}, Block: true}, func(fsm.Event) {})
						returned("acquire", err)
					})
					calls.Go(func() {
						_, err := n.Submit(ctx, fsm.Release{Owner: n.Name(), Locks: []string{"b"}})
						returned("submit", err)
					})
					calls.Go(func() { _, err := n.Status(ctx, n.Name(), []string{"a"}); returned("status", err) })
					calls.Go(func() { _, err := n.Table(ctx, false); returned("table", err) })
				}
				time.Sleep(time.Millisecond)
				for _, n := range s.nodes {
					for range 2 {
						closing.Go(func() {
							if err := n.Close(ctx); err != nil {
								t.Errorf("close %s: %v", n.Name(), err)
							}
						})
					}
				}
				closing.Wait()
				calls.Wait()
				for _, n := range s.nodes {
					if _, err := n.Status(ctx, "amy", []string{"a"}); err == nil {
						t.Errorf("%s answers after its end", n.Name())
					}
					if _, err := n.Submit(ctx, fsm.Tick{}); err == nil {
						t.Errorf("%s takes commands after its end", n.Name())
					}
				}
			})
		})
	}
}

// TestALateRequestTakesNothingOver has a client move on to another node while its
// request is stuck at one that has been cut off, be it in the node or in the network.
// When the link is back, nobody must ask for what the client has given up on: it
// would lose what it got elsewhere.
func TestALateRequestTakesNothingOver(t *testing.T) {
	tests := []struct {
		name           string
		before, behind time.Duration // from the cut to the request, and from its end to the healing
	}{
		{"in the node", 7 * time.Second, 0},
		{"in the network", 10 * time.Millisecond, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 3)
				defer s.close()
				first := s.follower()
				ctx := context.Background()
				if _, err := first.Submit(ctx, fsm.Release{Owner: "x", Locks: []string{"x"}}); err != nil {
					t.Fatal(err)
				}
				s.net.Isolate(first.addr)
				time.Sleep(tt.before)
				amy := fsm.Acquire{Owner: "amy", ID: fsm.RequestID{1}, Locks: []string{"a"}, Block: true}
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				if _, _, err := first.Acquire(short, amy, func(fsm.Event) {}); err == nil {
					t.Fatal("granted by a node that is cut off")
				}
				var told []fsm.Event
				_, res, err := s.leader().Acquire(ctx, amy, func(e fsm.Event) { told = append(told, e) })
				if err != nil || res.Code != fsm.Granted {
					t.Fatalf("%+v, %v", res, err)
				}
				time.Sleep(tt.behind)
				s.net.Heal()
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if st, err := s.leader().Status(ctx, "amy", amy.Locks); err != nil || st.Fence != res.Fence || len(told) > 0 {
					t.Errorf("held %d; the cluster says %+v, %v; told %v", res.Fence, st, err, told)
				}
			})
		})
	}
}

// TestAFullDiskTakesReleasesOnly sets all disks to nearly full, and then all but one.
func TestAFullDiskTakesReleasesOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		leader, n := s.leader(), s.follower()
		ctx := context.Background()
		a := fsm.Acquire{Owner: "amy", Locks: []string{"a"}}
		_, held, err := n.Acquire(ctx, a, func(fsm.Event) {})
		if err != nil || held.Code != fsm.Granted {
			t.Fatalf("%+v, %v", held, err)
		}
		for _, node := range s.nodes {
			if node != leader {
				node.space.set(true)
			}
		}
		time.Sleep(2 * pingInterval) // until they have said so
		leader.space.set(true)
		for _, via := range []*Node{leader, n} {
			_, res, err := via.Acquire(ctx, fsm.Acquire{Owner: "bob", Locks: []string{"b"}, Block: true}, func(fsm.Event) {})
			if err != nil || res.Code != fsm.Refused || !strings.Contains(res.Reason, "disk") {
				t.Errorf("by %s: %+v, %v", via.Name(), res, err)
			}
		}
		if res, err := n.Submit(ctx, fsm.Release{Fence: held.Fence}); err != nil || res.Code != fsm.Done {
			t.Errorf("release: %+v, %v", res, err)
		}
		if s.leader() != leader {
			t.Errorf("%s leads, though no server has more space than %s", s.leader().Name(), leader.Name())
		}
		n.space.set(false)
		time.Sleep(2 * pingInterval)
		if _, res, err := leader.Acquire(ctx, a, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
			t.Errorf("with space on %s: %+v, %v", n.Name(), res, err)
		}
		if s.leader() != n {
			t.Errorf("%s leads, and not %s, which has space", s.leader().Name(), n.Name())
		}
	})
}

// TestAFullDiskThatIsElected gives the office to a server whose disk is full already.
// Who asks for a lock meanwhile is kept waiting and not refused.
func TestAFullDiskThatIsElected(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		old, full := s.leader(), s.follower()
		full.space.set(true)
		time.Sleep(2 * pingInterval)
		if err := old.raft.LeadershipTransferToServer(raft.ServerID(full.id), raft.ServerAddress(full.addr)).Error(); err != nil {
			t.Fatal(err)
		}
		for full.office.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		ctx := context.Background()
		_, res, err := old.Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, func(fsm.Event) {})
		if err != nil || res.Code != fsm.Granted {
			t.Errorf("%+v, %v", res, err)
		}
		if s.leader() == full {
			t.Errorf("%s leads still", full.Name())
		}
	})
}

// TestAWatcherHearsOfASnapshot cuts a watched server off for so long that it has to be
// sent a snapshot.
func TestAWatcherHearsOfASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		leader, cut := s.leader(), s.follower()
		for _, n := range s.nodes {
			rc := n.raft.ReloadableConfig()
			rc.TrailingLogs = 1
			if err := n.raft.ReloadConfig(rc); err != nil {
				t.Fatal(err)
			}
		}
		events, cancel := cut.Subscribe(watchAhead)
		defer cancel()
		ctx := context.Background()
		owners := func(from, to int) {
			for i := from; i < to; i++ {
				name := fmt.Sprintf("u%d", i)
				if _, res, err := leader.Acquire(ctx, fsm.Acquire{Owner: name, Locks: []string{name}}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
					t.Fatalf("%+v, %v", res, err)
				}
			}
		}
		owners(0, 1)
		if e := <-events; e.Owner != "u0" {
			t.Errorf("told of %+v", e)
		}
		s.net.Isolate(cut.addr)
		owners(1, 50)
		if err := leader.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		s.net.Heal()
		next := 1
		for e := range events { // to their end
			if e.Owner != fmt.Sprintf("u%d", next) {
				t.Fatalf("told of %s, not of u%d", e.Owner, next)
			}
			next++
		}
		if next == 50 {
			t.Error("it was sent all entries, and no snapshot")
		}
	})
}

// TestAnIdleNodeThatWasGivenUpJoinsAgain: nobody makes a request by it meanwhile.
func TestAnIdleNodeThatWasGivenUpJoinsAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		leader := s.leader()
		time.Sleep(5 * time.Second) // all have joined
		for _, n := range s.nodes {
			old := n.ledger.incarnation()
			if _, err := leader.office.Load().do(context.Background(), fsm.NodeGone{Node: old}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
			found := false
			leader.replica.view(func(m *fsm.Machine) {
				for _, node := range m.Nodes() {
					found = found || node.Incarnation == n.ledger.incarnation()
				}
			})
			if !found || n.ledger.incarnation() == old {
				t.Errorf("%s is not in the table", n.Name())
			}
		}
	})
}

// TestAForsakenNodeTakesNothingBack cuts a node off until the cluster gives it up.
// Its clients move to another node meanwhile. When it is back, it must not take
// from the others what its clients have there now: it cannot know yet that they left.
func TestAForsakenNodeTakesNothingBack(t *testing.T) {
	amy := fsm.Acquire{Owner: "amy", ID: fsm.RequestID{1}, Locks: []string{"a"}, Block: true}
	tests := []struct {
		name string
		held bool // by somebody else first: amy waits
		move func(ctx context.Context, n *Node, fence fsm.Fence, notify func(fsm.Event)) (fsm.Result, error)
	}{
		{"a hold, attached elsewhere", false, func(ctx context.Context, n *Node, fence fsm.Fence, notify func(fsm.Event)) (fsm.Result, error) {
			_, res, err := n.Attach(ctx, amy.Owner, fence, notify)
			return res, err
		}},
		{"a hold, asked for elsewhere", false, func(ctx context.Context, n *Node, _ fsm.Fence, notify func(fsm.Event)) (fsm.Result, error) {
			_, res, err := n.Acquire(ctx, amy, notify)
			return res, err
		}},
		{"a wait, asked for elsewhere", true, func(ctx context.Context, n *Node, _ fsm.Fence, notify func(fsm.Event)) (fsm.Result, error) {
			_, res, err := n.Acquire(ctx, amy, notify)
			return res, err
		}},
	}
	for _, tt := range tests {
		for _, agent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, agent %v", tt.name, agent), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newSim(t, 3)
					defer s.close()
					ctx, first := context.Background(), s.follower()
					if agent {
						s.configure = func(cfg *Config) {
							_ = cfg.PeerListener.Close()
							cfg.Agent, cfg.PeerListener, cfg.Stores = true, nil, nil
						}
						first = s.start("agent")
					}
					if tt.held {
						if _, res, err := s.leader().Acquire(ctx, fsm.Acquire{Owner: "bob", Locks: amy.Locks}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
							t.Fatalf("bob: %+v, %v", res, err)
						}
					}
					var old, told []fsm.Event
					_, res, err := first.Acquire(ctx, amy, func(e fsm.Event) { old = append(old, e) })
					if err != nil {
						t.Fatal(err)
					}
					s.net.Isolate(first.cfg.Name + ":1")
					time.Sleep(15 * time.Second) // its waits are withdrawn
					if moved, err := tt.move(ctx, s.leader(), res.Fence, func(e fsm.Event) { told = append(told, e) }); err != nil || moved.Code == fsm.NotHeld {
						t.Fatalf("moved: %+v, %v", moved, err)
					}
					s.net.Heal()
					// It notices sooner if it has something to ask.
					for err := ErrNoLeader; err != nil; time.Sleep(time.Millisecond) {
						_, err = first.Submit(ctx, fsm.Release{Owner: "x", Locks: []string{"x"}})
					}
					time.Sleep(30 * time.Second)
					synctest.Wait()
					if len(told) > 0 {
						t.Errorf("told where the client is now: %+v", told)
					}
					if len(old) != 1 || old[0].Kind != fsm.EventSuperseded {
						t.Errorf("told where the client was: %+v", old)
					}
				})
			})
		}
	}
}
