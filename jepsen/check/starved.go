package check

import (
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

const (
	// vainTime and vainGrants are how long somebody must have waited, and how many
	// who came later must have been served meanwhile, for a wait to be in vain. A cut
	// link is noticed in nine seconds, and no fault lasts longer than five.
	vainTime   = 15 * time.Second
	vainGrants = 20
)

// wait is a request that waited, or may have.
type wait struct {
	history.Pair
	// since is when it was told of its place in the queue: before, the node asked may
	// have been cut off. Without that word it is when it was called.
	since time.Duration
	until time.Duration
}

// waits lists the requests that were made to wait for one lock or for any of several.
// Those for all of several may be passed on each of them, while another is held.
func waits(ops []history.Op, pairs []history.Pair) (all []wait) {
	queued := map[int][]time.Duration{} // by process
	end := time.Duration(0)
	for _, op := range ops {
		if op.F == history.Queued {
			queued[op.Process] = append(queued[op.Process], op.Time)
		}
		end = op.Time
	}
	for _, p := range pairs {
		if p.Call.F != history.Acquire || p.Call.Try || p.Call.All || p.Type() == history.Fail {
			continue
		}
		w := wait{p, p.Call.Time, end}
		if p.Done {
			w.until = p.Return.Time
		}
		list := queued[p.Call.Process]
		if i, _ := slices.BinarySearch(list, p.Call.Time); i < len(list) && list[i] < w.until {
			w.since = list[i]
		}
		all = append(all, w)
	}
	return all
}

// starved: nobody waits for ever while others are served, but for those who pass a
// place while its node is out of touch; whether the wait ends with the lock or not. (L2)
func starved(ops []history.Op, pairs []history.Pair, a *audit) Result {
	r := Result{Verdict: Pass}
	byLock := map[string][]history.Pair{} // grants, in the order of their calls
	for _, p := range pairs {
		if granted(p) {
			for _, l := range p.Return.Locks {
				byLock[l] = append(byLock[l], p)
			}
		}
	}
	for _, w := range waits(ops, pairs) {
		r.Looked++
		if w.until-w.since < vainTime {
			continue
		}
		for _, l := range w.Call.Locks {
			if n := w.passed(byLock[l], a.passed[place{w.Call.Owner, l}]); n >= vainGrants {
				r.problem(w.Return.Index, "op %d: %s waited for %s for %v while %d who came later got it: %s",
					w.Call.Index, w.Call.Owner, l, w.until-w.since, n, w.outcome())
			}
		}
	}
	return r
}

func (w wait) outcome() string {
	if granted(w.Pair) {
		return "then it got " + w.Return.Locks[0]
	}
	return w.Return.Error
}

// passed counts the grants of a lock to those who asked for it when w was in line, and got
// it before w, but for what the servers passed over lawfully.
func (w wait) passed(grants []history.Pair, lawful []spanOf) (n int) {
	i, _ := slices.BinarySearchFunc(grants, w.since, func(q history.Pair, t time.Duration) int {
		if q.Call.Time <= t {
			return -1
		}
		return 1
	})
	for _, q := range grants[i:] {
		f := q.Return.Fence
		before := q.Return.Time < w.until
		if granted(w.Pair) {
			before = f < w.Return.Fence
		}
		if before && !slices.ContainsFunc(lawful, func(s spanOf) bool { return s.first <= f && f <= s.last }) {
			n++
		}
	}
	return n
}
