package check

import (
	"cmp"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

// How late a hold may end where nothing is in the way. A limit and a death take effect
// in a fraction of a second; the bounds are for a machine that has other work. Of
// processes on hosts without a node the leader asks once a second, believes no answer
// about a hold younger than five, and asks nobody for three when it is new.
const (
	endsWithin    = 5 * time.Second
	endsFarWithin = 15 * time.Second

	// unrest is how long after a fault was healed, or a leader was found, something may
	// still be in the way: a cut link is noticed in nine seconds, an election takes two.
	unrest = 9 * time.Second

	// lateAtMost bounds what faults that follow each other excuse together: between any
	// two there is a leader at some time. A single one may take longer than longFault:
	// that much is added.
	lateAtMost = 30 * time.Second
	longFault  = 5 * time.Second
)

// stretch is a time from, to.
type stretch struct{ from, to time.Duration }

// disturbances are the times of faults and those without a leader, in the order of their
// beginnings, none over another.
func disturbances(ops []history.Op) []stretch {
	var all []stretch
	open := map[string]time.Duration{}
	leaderless := time.Duration(-1)
	for _, op := range ops {
		switch {
		case op.Process != history.Nemesis:
		case op.F == "leader" && op.Value == "":
			if leaderless < 0 {
				leaderless = op.Time
			}
		case op.F == "leader":
			if leaderless >= 0 {
				all = append(all, stretch{leaderless, op.Time + unrest})
			}
			leaderless = -1
		case op.Type == history.Invoke:
			open[op.F] = op.Time
		case op.Type == history.OK:
			all = append(all, stretch{open[op.F], op.Time + unrest})
			delete(open, op.F)
		}
	}
	for _, from := range open {
		all = append(all, stretch{from, history.Forever})
	}
	if leaderless >= 0 {
		all = append(all, stretch{leaderless, history.Forever})
	}
	slices.SortFunc(all, func(a, b stretch) int { return cmp.Compare(a.from, b.from) })
	var joined []stretch
	for _, s := range all {
		if n := len(joined); n > 0 && s.from <= joined[n-1].to {
			joined[n-1].to = max(joined[n-1].to, s.to)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// within is how much of a time others take up.
func within(from, to time.Duration, others []stretch) (sum time.Duration) {
	for _, s := range others {
		sum += max(0, min(to, s.to)-max(from, s.from))
	}
	return sum
}

// longFaults are those that took more than longFault.
func longFaults(ops []history.Op) (all []stretch) {
	open := map[string]time.Duration{}
	for _, op := range ops {
		switch {
		case op.Process != history.Nemesis:
		case op.Type == history.Invoke:
			open[op.F] = op.Time
		case op.Type == history.OK && op.Time-open[op.F] > longFault:
			all = append(all, stretch{open[op.F], op.Time})
		}
	}
	return all
}

// due is when a hold is to have ended, and why; Forever if nothing ends it.
type due struct {
	at    time.Duration
	grace time.Duration
	until time.Duration // it may go on if it has not ended by then
	why   string
}

// dues lists why the hold of an acquire is to end. began is when it had certainly begun.
func dues(s *seen, p history.Pair, began time.Duration, died map[string]time.Duration, stops map[string][]stretch) []due {
	longest := func(d time.Duration) time.Duration { return time.Duration(float64(d) * max(s.End.Hasten, 1)) }
	var all []due
	if p.Call.Limit > 0 {
		all = append(all, due{began + longest(p.Call.Limit), endsWithin, history.Forever, "its limit"})
	}
	if t, ok := died[p.Call.Owner]; ok {
		d := due{max(t, began), endsWithin, history.Forever, "the death of its process"}
		if p.Call.Proto == 1 {
			d.grace = endsFarWithin
		}
		all = append(all, d)
	}
	if p.Call.Lease > 0 {
		for _, stop := range stops[p.Call.Owner] {
			all = append(all, due{max(stop.from, began) + longest(p.Call.Lease), endsWithin, stop.to, "its lease, while its owner was stopped"})
		}
	}
	return all
}

// stopped lists when each owner was stopped.
func stopped(ops []history.Op) map[string][]stretch {
	all := map[string][]stretch{}
	for _, op := range ops {
		switch op.F {
		case history.Stopped:
			all[op.Owner] = append(all[op.Owner], stretch{op.Time, history.Forever})
		case history.Continued:
			if n := len(all[op.Owner]); n > 0 {
				all[op.Owner][n-1].to = op.Time
			}
		}
	}
	return all
}

// outlasting: a hold whose limit is over, whose owner was silent for its lease or whose
// process is dead, ends soon: within some seconds, and as long as faults were in the way.
func outlasting(s *seen) Result {
	r := Result{Verdict: Pass}
	died, stops := deaths(s.Ops), stopped(s.Ops)
	trouble, long := disturbances(s.Ops), longFaults(s.Ops)
	last := time.Duration(0) // heard of
	for _, e := range s.Events {
		last = max(last, e.Time)
	}
	for _, p := range s.pairs {
		if p.Call.F != history.Acquire || p.Type() == history.Fail {
			continue
		}
		for f, g := range s.audit.had(p) {
			began := max(g.Time, p.Return.Time)
			e, ok := s.audit.ends[f]
			if ok && e.Cause == "broken" {
				continue // by the janitor: nobody could know any more
			}
			ended := e.Time
			if !ok {
				if !s.audit.watched(f, 0) {
					continue
				}
				ended = last // or later
			}
			for _, d := range dues(s, p, began, died, stops) {
				r.Looked++
				most := lateAtMost
				for _, f := range long {
					if f.to >= began && f.from <= ended {
						most += f.to - f.from - longFault
					}
				}
				excuse := min(within(began, ended, trouble), most)
				if by := d.at + d.grace + excuse; ended > by && d.until > by {
					r.problem(p.Return.Index, "the hold of %s (op %d, fence %d) was there until %v, and was to end by %s at %v (%v later, with %v for faults)",
						p.Call.Owner, p.Return.Index, f, ended, d.why, d.at, d.grace, excuse)
				}
			}
		}
	}
	return r
}
