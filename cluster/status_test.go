package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

func TestReportOfACluster(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		lead := s.leader()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := lead.Acquire(ctx, fsm.Acquire{Owner: "o", Locks: []string{"a"}}, func(fsm.Event) {}); err != nil {
			t.Fatal(err)
		}
		for _, n := range s.nodes {
			if err := n.Ready(ctx); err != nil {
				t.Errorf("%s: %v", n.Name(), err)
			}
			r, err := n.Report(ctx, false)
			if err != nil {
				t.Fatal(err)
			}
			want := "follower"
			if n == lead {
				want = "leader"
			}
			if r.Role != want || !r.Ready || r.LeaderID != lead.id || r.LeaderAddr != lead.addr || len(r.Servers) != 3 {
				t.Errorf("%s: %+v", n.Name(), r)
			}
			if r.Counts.Holds != 1 || r.Counts.Fence != 1 || r.Term == 0 || r.Commit == 0 {
				t.Errorf("%s: %+v, counts %+v", n.Name(), r, r.Counts)
			}
		}
		// Nodes join the table one by one, so the replicas need a moment to be level.
		digests, indices := map[string]bool{}, map[uint64]bool{}
		for range 1000 {
			clear(digests)
			clear(indices)
			for _, n := range s.nodes {
				r, err := n.Report(ctx, true)
				if err != nil {
					t.Fatal(err)
				}
				digests[r.Digest], indices[r.Index] = true, true
			}
			if len(indices) == 1 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if len(indices) != 1 || len(digests) != 1 {
			t.Errorf("the replicas differ: digests %v at %v", digests, indices)
		}
	})
}

func TestReportWithoutAQuorum(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		lead := s.leader()
		s.net.Isolate(lead.cfg.Name + ":1")
		time.Sleep(30 * time.Second) // of simulated time: connections break, and the leader steps down
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := lead.Ready(ctx)
		if !errors.Is(err, ErrNoLeader) || !strings.Contains(err.Error(), "1 of 3 servers") {
			t.Errorf("Ready: %v", err)
		}
		r, rerr := lead.Report(ctx, false)
		if rerr != nil || r.Ready || !strings.Contains(r.Reason, "1 of 3 servers") || r.Role == "leader" {
			t.Errorf("Report: %+v, %v", r, rerr)
		}
		for _, v := range r.Servers {
			if v.Reachable != (v.ID == lead.id) {
				t.Errorf("server %+v", v)
			}
		}
		if m, err := lead.Members(ctx); err != nil || len(m) != 1 {
			t.Errorf("Members: %+v, %v", m, err)
		}
		s.net.Heal()
	})
}
