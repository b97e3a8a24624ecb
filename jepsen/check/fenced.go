package check

import "github.com/lockerd/lockerd/jepsen/history"

// fenced gives the holds of clients that speak the original protocol, which has no
// fences, those that the servers tell of: each such hold has a user of its own. A grant
// that the servers do not tell of, though they tell of all, stays without a fence; one
// that they may have told of while nobody listened counts as unknown.
func fenced(pairs []history.Pair, a *audit) []history.Pair {
	for i := range pairs {
		p := &pairs[i]
		if p.Call.Proto != 1 || p.Call.F != history.Acquire && p.Call.F != history.Release {
			continue
		}
		if p.Call.F == history.Acquire && p.Type() != history.OK {
			continue
		}
		switch g := a.of(p.Call.Owner); {
		case len(g) == 1 && p.Call.F == history.Release:
			p.Call.Fence, p.Return.Fence = g[0].Fence, g[0].Fence
		case len(g) == 1:
			p.Return.Fence = g[0].Fence
		case !a.complete:
			p.Done = false
		}
	}
	return pairs
}
