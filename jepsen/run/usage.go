package run

import (
	"context"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/db"
)

// usageTries is how often a node is asked: it may be slow on a busy machine.
const usageTries = 5

// usage asks all nodes for what they have open. It leaves out who does not answer.
func (s *session) usage(ctx context.Context) map[string]db.Usage {
	all := map[string]db.Usage{}
	for _, n := range s.cluster.Nodes {
		for range usageTries {
			if u, err := n.Usage(ctx); err == nil {
				all[n.Name] = u
				break
			}
			if sleep(ctx, lookEvery) != nil {
				break
			}
		}
	}
	return all
}

// settleTime is how long what clients had open may take to close when they have gone:
// a connection that was cut is noticed in nine seconds.
const settleTime = 12 * time.Second

// growth compares what the nodes have open now, when nobody wants anything of them, with
// what they had before anybody did. It waits for what closes by itself.
func (s *session) growth(ctx context.Context, before map[string]db.Usage) (list []check.Growth) {
	for until := time.Now().Add(settleTime); ; {
		after := s.usage(ctx)
		list = list[:0]
		large := false
		for _, n := range s.cluster.Nodes {
			a, b := before[n.Name], after[n.Name]
			g := check.Growth{Node: n.Name, Goroutines: [2]int{a.Goroutines, b.Goroutines}, Files: [2]int{a.Files, b.Files}}
			large = large || g.Large()
			list = append(list, g)
		}
		if !large || !time.Now().Before(until) || sleep(ctx, lookEvery) != nil {
			return list
		}
	}
}
