package cluster

import (
	"context"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestEnded asks every node, an agent too, for what has ended a hold, as soon as another one
// has answered the request that did.
func TestEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.leader()
		s.configure = simAgent
		nodes := []*Node{s.start("agent"), s.nodes["n1"], s.nodes["n2"], s.nodes["n3"]}
		for i, n := range nodes {
			for _, end := range []struct {
				command func(fsm.Fence) fsm.Command
				want    fsm.Cause
			}{
				{func(f fsm.Fence) fsm.Command { return fsm.Release{Fence: f} }, fsm.CauseOwner},
				{func(f fsm.Fence) fsm.Command { return fsm.Break{Locks: []string{"x"}, Fence: f, By: "bob"} }, fsm.CauseBroken},
			} {
				_, held, err := n.Acquire(ctx, fsm.Acquire{Owner: "ann", Locks: []string{"x"}}, func(fsm.Event) {})
				if err != nil || held.Code != fsm.Granted {
					t.Fatalf("%+v, %v", held, err)
				}
				if got, err := nodes[(i+1)%len(nodes)].Ended(ctx, held.Fence); err != nil || got != fsm.CauseNone {
					t.Errorf("held, and ended by %v, %v", got, err)
				}
				if res, err := n.Submit(ctx, end.command(held.Fence)); err != nil || res.Code != fsm.Done {
					t.Fatalf("%+v, %v", res, err)
				}
				for _, o := range nodes {
					if got, err := o.Ended(ctx, held.Fence); err != nil || got != end.want {
						t.Errorf("%s says that it was ended by %v, %v; it was by %v", o.Name(), got, err, end.want)
					}
				}
			}
		}
	})
}

// TestEndingsAreForgotten overwrites the oldest, and takes no hold for another.
func TestEndingsAreForgotten(t *testing.T) {
	e := make(endings, rememberedEnds)
	e.note([]fsm.Event{{Kind: fsm.EventReleased, Fence: 5, Cause: fsm.CauseLimit}, {Kind: fsm.EventGranted, Fence: 6}})
	for f, want := range map[fsm.Fence]fsm.Cause{0: 0, 5: fsm.CauseLimit, 6: 0, 5 + rememberedEnds: 0} {
		if got := e.cause(f); got != want {
			t.Errorf("fence %d: %v, want %v", f, got, want)
		}
	}
	e.note([]fsm.Event{{Kind: fsm.EventReleased, Fence: 5 + rememberedEnds, Cause: fsm.CauseOrder}})
	for f, want := range map[fsm.Fence]fsm.Cause{5: 0, 5 + rememberedEnds: fsm.CauseOrder} {
		if got := e.cause(f); got != want {
			t.Errorf("later, fence %d: %v, want %v", f, got, want)
		}
	}
}
