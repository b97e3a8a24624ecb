package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

func granted(p history.Pair) bool { return p.Call.F == history.Acquire && p.Type() == history.OK }

// fences: no two grants carry one fence, and none carries zero. (T1)
func fences(pairs []history.Pair) Result {
	r := Result{Verdict: Pass}
	seen := map[uint64]history.Pair{}
	for _, p := range pairs {
		if !granted(p) {
			continue
		}
		r.Looked++
		f := p.Return.Fence
		if f == 0 {
			r.problem(p.Return.Index, "op %d: %s got %v without a fence", p.Return.Index, p.Call.Owner, p.Return.Locks)
			continue
		}
		if q, ok := seen[f]; ok {
			r.problem(p.Return.Index, "fence %d was granted twice: op %d to %s and op %d to %s", f, q.Return.Index, q.Call.Owner, p.Return.Index, p.Call.Owner)
		}
		seen[f] = p
	}
	return r
}

// order: fences grow with time. Whoever has a lower one was not granted it after
// the whole of the operation that got the higher one. (T2, over all locks, as there
// is one sequence of fences)
func order(pairs []history.Pair) Result {
	r := Result{Verdict: Pass}
	var g []history.Pair
	for _, p := range pairs {
		if granted(p) {
			g = append(g, p)
		}
	}
	slices.SortFunc(g, func(a, b history.Pair) int { return cmp.Compare(a.Return.Fence, b.Return.Fence) })
	var last history.Pair // of the lower fences, the one that was asked for last
	for i, p := range g {
		r.Looked++
		if i > 0 && p.Return.Time < last.Call.Time {
			r.problem(last.Return.Index, "fence %d (op %d) was granted by %v, but the lower fence %d (op %d) was asked for at %v only",
				p.Return.Fence, p.Return.Index, p.Return.Time, last.Return.Fence, last.Call.Index, last.Call.Time)
		}
		if i == 0 || p.Call.Time > last.Call.Time {
			last = p
		}
	}
	return r
}

// reuse: after a release with a fence was acknowledged, nothing is acknowledged
// for that fence any more. (T3)
func reuse(pairs []history.Pair) Result {
	r := Result{Verdict: Pass}
	over := map[uint64]history.Pair{}
	for _, p := range pairs {
		if p.Call.F != history.Release || p.Type() != history.OK {
			continue
		}
		r.Looked++
		if q, ok := over[p.Call.Fence]; ok && q.Return.Time < p.Call.Time {
			r.problem(p.Return.Index, "fence %d was released twice: ops %d and %d", p.Call.Fence, q.Return.Index, p.Return.Index)
		}
		over[p.Call.Fence] = p
	}
	for _, p := range pairs {
		if q, ok := over[p.Return.Fence]; ok && granted(p) && q.Return.Time < p.Call.Time {
			r.problem(p.Return.Index, "fence %d was released by op %d and granted again to op %d", p.Return.Fence, q.Return.Index, p.Return.Index)
		}
	}
	return r
}

// span is a certain hold of one lock.
type span struct {
	from, to time.Duration
	mode     string
	slots    int
	who      history.Pair
}

func (s span) String() string {
	return fmt.Sprintf("%s (op %d, fence %d, certain from %v to %v)", s.who.Call.Owner, s.who.Return.Index, s.who.Return.Fence, s.from, s.to)
}

// spans lists the certain holds by lock.
func spans(in Input, pairs []history.Pair) map[string][]span {
	released := map[uint64]time.Duration{}
	broken := map[string][]stretch{} // by lock: breaks of whoever holds it
	for _, p := range pairs {
		switch p.Call.F {
		case history.Release, history.Break:
			if f := p.Call.Fence; f != 0 {
				if t, ok := released[f]; !ok || p.Call.Time < t {
					released[f] = p.Call.Time
				}
			} else if p.Call.F == history.Break {
				for _, l := range p.Call.Locks {
					broken[l] = append(broken[l], stretch{p.Call.Time, p.End()})
				}
			}
		}
	}
	died := deaths(in.Ops)
	locks := map[string][]span{}
	for _, p := range pairs {
		if !granted(p) {
			continue
		}
		to := history.Forever
		if t, ok := released[p.Return.Fence]; ok {
			to = t
		}
		if p.Call.Limit > 0 {
			to = min(to, p.Call.Time+in.End.least(p.Call.Limit))
		}
		if p.Call.Lease > 0 {
			to = min(to, p.Call.Time+in.End.least(p.Call.Lease)) // a fault may keep its renewals off
		}
		if t, ok := died[p.Call.Owner]; ok {
			to = min(to, t)
		}
		for _, l := range p.Return.Locks {
			end := to
			for _, b := range broken[l] {
				// A break that was under way when the hold began may have ended it.
				if b.from >= p.Call.Time || b.to > p.Call.Time {
					end = min(end, max(b.from, p.Call.Time))
				}
			}
			if end > p.Return.Time {
				locks[l] = append(locks[l], span{p.Return.Time, end, p.Call.Mode, p.Call.Slots, p})
			}
		}
	}
	return locks
}

// exclusion: certain holds of one lock do not overlap, but for those that may
// share it. (T4)
func exclusion(in Input, pairs []history.Pair) Result {
	r := Result{Verdict: Pass}
	for lock, all := range spans(in, pairs) {
		slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
		var now []span
		for _, s := range all {
			r.Looked++
			now = slices.DeleteFunc(now, func(o span) bool { return o.to <= s.from })
			room := s.slots
			for _, o := range now {
				switch {
				case s.mode == "shared" && o.mode == "shared":
				case s.mode == "slots" && o.mode == "slots" && room > 1:
					room--
				default:
					r.problem(s.who.Return.Index, "%s was held by %v and by %v at a time", lock, o, s)
				}
			}
			now = append(now, s)
		}
	}
	return r
}

// losses: no hold ends without its owner's doing where nothing may end it, or
// before it may. (A4)
func losses(in Input, pairs []history.Pair, a *audit) Result {
	r := Result{Verdict: Pass}
	died := deaths(in.Ops)
	wanted := asked(in.Ops)
	for _, p := range pairs {
		switch {
		case granted(p):
			r.Looked++
			e, ok := a.ends[p.Return.Fence]
			if why := early(in.End, p, e, died, wanted); ok && why != "" {
				r.problem(p.Return.Index, "the hold of %s (op %d, fence %d) was ended by cause %s at %v, %s", p.Call.Owner, p.Return.Index, p.Return.Fence, e.Cause, e.Time, why)
			}
		case !in.End.Loses && p.Call.F == history.Release && p.Type() == history.Fail:
			r.problem(p.Return.Index, "op %d: %s released fence %d and was told that it was lost", p.Return.Index, p.Call.Owner, p.Call.Fence)
		}
	}
	for _, op := range in.Ops {
		if op.F == history.Lost && !in.End.Loses {
			r.problem(op.Index, "op %d: %s lost %v (fence %d): %s", op.Index, op.Owner, op.Locks, op.Fence, op.Value)
		}
	}
	return r
}

// early says why a hold that was granted may not have ended as the servers say.
func early(end End, p history.Pair, e history.Event, died map[string]time.Duration, wanted map[want]time.Duration) string {
	switch e.Cause {
	case "owner":
		t, ok := wanted[want{history.Release, p.Call.Owner, p.Return.Fence}]
		if !ok {
			// A client of IPC::Locker knows of no fence.
			t, ok = wanted[want{history.Release, p.Call.Owner, 0}]
		}
		if !ok || e.Time < t {
			return "and its owner had not released it"
		}
	case "broken":
		if t, ok := wanted[want{history.Break, e.By, 0}]; !ok || e.Time < t {
			return fmt.Sprintf("by %q, who had not asked for it", e.By)
		}
	case "limit":
		if p.Call.Limit == 0 {
			return "and it had none"
		}
		if e.Time < p.Call.Time+end.least(p.Call.Limit) {
			return fmt.Sprintf("and it was asked for at %v, for %v", p.Call.Time, p.Call.Limit)
		}
	case "process":
		if t, ok := died[p.Call.Owner]; !ok || e.Time < t {
			return "and its process lived"
		}
	case "lease":
		if p.Call.Lease == 0 {
			return "and it had none"
		}
		if e.Time < p.Call.Time+end.least(p.Call.Lease) {
			return fmt.Sprintf("and it was asked for at %v, with a lease of %v", p.Call.Time, p.Call.Lease)
		}
	case "undelivered", "node":
		return "and its client had been told that it had it"
	}
	return ""
}

// want is who has asked for the end of a hold: its owner by its fence, or a breaker.
type want struct {
	f     string
	who   string
	fence uint64
}

// asked is when each end was first asked for.
func asked(ops []history.Op) map[want]time.Duration {
	first := map[want]time.Duration{}
	for _, op := range ops {
		var w want
		switch {
		case op.Type != history.Invoke:
			continue
		case op.F == history.Release:
			w = want{op.F, op.Owner, op.Fence}
		case op.F == history.Break:
			w = want{f: op.F, who: op.Value}
		default:
			continue
		}
		if _, ok := first[w]; !ok {
			first[w] = op.Time
		}
	}
	return first
}

func deaths(ops []history.Op) map[string]time.Duration {
	died := map[string]time.Duration{}
	for _, op := range ops {
		if op.F == history.Death {
			died[op.Owner] = op.Time
		}
	}
	return died
}

// faults: if there were to be faults, there were some.
func faults(in Input) Result {
	r := Result{Verdict: Pass}
	if !in.End.Nemesis {
		r.Looked = 1
	}
	for _, op := range in.Ops {
		if op.Process == history.Nemesis && op.Type == history.OK {
			r.Looked++
		}
	}
	return r
}

// digests: the tables of all nodes are equal where their logs are. (A3)
func digests(end End) Result {
	r := Result{Verdict: Pass, Looked: len(end.Digests)}
	if !end.Agree {
		r.Verdict = Undecided
		r.Problems = []string{fmt.Sprintf("the nodes were never seen at one index: %+v", end.Digests)}
		return r
	}
	for _, d := range end.Digests[1:] {
		if o := end.Digests[0]; d.Digest != o.Digest {
			r.problem(0, "at index %d the table of %s is %s and that of %s is %s", d.Index, o.Node, o.Digest, d.Node, d.Digest)
		}
	}
	return r
}

// leftovers: nobody who is gone holds anything or waits for it. (L2)
func leftovers(end End) Result {
	r := Result{Verdict: Pass, Looked: 1}
	for _, k := range end.Kept {
		r.problem(0, "%s", k)
	}
	return r
}

const (
	// recoverWithin bounds the time from the last heal until all nodes serve.
	recoverWithin = 20 * time.Second
	// worksWithin bounds the time until somebody has got a lock after that.
	worksWithin = 15 * time.Second
)

// recovery: once all is healed the cluster comes back, and clients get locks. (L1)
func recovery(in Input, pairs []history.Pair) Result {
	r := Result{Verdict: Pass, Looked: 1}
	if in.End.Recover == 0 || in.End.Recover > recoverWithin {
		r.problem(0, "the nodes did not all serve within %v of the last heal", recoverWithin)
	}
	healed := in.End.Healed
	first := history.Forever
	for _, p := range pairs {
		if granted(p) && p.Return.Time > healed {
			first = min(first, p.Return.Time)
		}
	}
	if first > healed+worksWithin {
		r.problem(0, "nobody got a lock within %v of the last heal (at %v)", worksWithin, healed)
	}
	return r
}

// handOver is how long after its disk became full a leader may refuse new holds: by
// then another server leads.
const handOver = 4 * time.Second

// refusals: nobody is refused but by a leader whose disk has just become full.
func refusals(in Input, pairs []history.Pair) Result {
	r := Result{Verdict: Pass}
	var fills []time.Duration
	for _, op := range in.Ops {
		if op.Process == history.Nemesis && op.Type == history.Invoke && op.F == "full" {
			fills = append(fills, op.Time)
		}
	}
	for _, p := range pairs {
		if p.Call.F != history.Acquire {
			continue
		}
		r.Looked++
		excused := slices.ContainsFunc(fills, func(t time.Duration) bool { return p.Call.Time >= t-time.Second && p.Return.Time <= t+handOver })
		if p.Type() == history.Fail && p.Return.Error != history.Busy && p.Return.Error != history.Unsent && !excused {
			r.problem(p.Return.Index, "op %d at %v: %s", p.Return.Index, p.Return.Time, p.Return.Error)
		}
	}
	return r
}

// processes: no server ends by itself, panics, or races. (P1)
func processes(end End) Result {
	r := Result{Verdict: Pass, Looked: 1}
	for _, l := range slices.Concat(end.Ended, end.Logs) {
		r.problem(0, "%s", strings.TrimSpace(l))
	}
	return r
}
