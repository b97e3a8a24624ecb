package cluster

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestSimulatedReleaseOfUnknownEffect has a node given up between a release and its
// answer. It asks again when it is back; that nothing is held then may be its own doing,
// or not. Who is told that it has released a lock has to have had it until then.
func TestSimulatedReleaseOfUnknownEffect(t *testing.T) {
	tests := []struct {
		name    string
		arrives bool // the first request reaches the leader, and only its answer is lost
		broken  bool // somebody breaks the lock
	}{
		{"it was released", true, false},
		{"it was broken before", false, true},
		{"it is held still", false, false},
	}
	for _, tt := range tests {
		for _, agent := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newSim(t, 3)
					defer s.close()
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					leader, n := s.leader(), s.follower()
					if agent {
						s.configure = simAgent
						n = s.start("agent")
					}
					_, held, err := n.Acquire(ctx, fsm.Acquire{Owner: "ann", Locks: []string{"x"}}, func(fsm.Event) {})
					if err != nil || held.Code != fsm.Granted {
						t.Fatalf("%+v, %v", held, err)
					}
					release := fsm.Release{Fence: held.Fence}
					if tt.arrives {
						// In the name of the request that is on its way, as the leader would have got it.
						n.ledger.mu.Lock()
						p := fsm.Proposal{Ask: fsm.Ask{Node: n.ledger.node, Seq: n.ledger.next}, Floor: n.ledger.floor, Command: release}
						n.ledger.mu.Unlock()
						leader.office.Load().propose(p, func(fsm.Result, error) {})
					}
					s.net.Isolate(n.Name() + ":1")
					type answer struct {
						res fsm.Result
						err error
					}
					answered := make(chan answer, 1)
					go func() {
						res, err := n.Submit(ctx, release)
						answered <- answer{res, err}
					}()
					if tt.broken {
						if res, err := leader.Submit(ctx, fsm.Break{Locks: []string{"x"}, Fence: held.Fence, By: "bob"}); err != nil || res.Code != fsm.Done {
							t.Fatalf("%+v, %v", res, err)
						}
					}
					old := n.ledger.incarnation()
					for leader.knows(old) {
						time.Sleep(100 * time.Millisecond)
					}
					s.net.Heal()
					got := <-answered
					if n.ledger.incarnation() == old {
						t.Error("it has not joined anew")
					}
					switch sure := !tt.arrives && !tt.broken; {
					case sure && (got.err != nil || got.res.Code != fsm.Done):
						t.Errorf("held until the release: told %+v, %v", got.res, got.err)
					case !sure && !errors.Is(got.err, errUnsure):
						t.Errorf("told %v, %v, which nobody can know", got.res.Code, got.err)
					}
				})
			})
		}
	}
}
