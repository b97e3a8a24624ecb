package check

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

const (
	// freezeSlack is what may pass after a deadline until everything moves, on top of what
	// the machine itself makes everybody wait.
	freezeSlack = time.Second
	// prepares bounds the time from an order that was taken until it is carried out.
	prepares = 90 * time.Second
)

// spell is a question and its answer: in between, what was asked moved.
type spell struct {
	index    int
	from, to time.Duration
	answered bool
}

// freezeOrder is an order as its client knows it.
type freezeOrder struct {
	index   int
	targets []string
	limit   time.Duration
	call    time.Duration
	frozen  time.Duration // when its client was told so; 0 = never
	thaw    time.Duration // when its client began to end it
	end     time.Duration // by when it was closed
	ended   history.Type
	reason  string
	alone   string // nodes that thawed by themselves
}

// freezes is what a history tells of freezes.
type freezes struct {
	in     Input
	orders []freezeOrder
	probes map[string][]spell // by target
	guards []time.Duration    // when one was killed
}

// freezing says whether a run was about that.
func freezing(s *seen) bool { return s.End.Workload == "freeze" }

func readFreezes(s *seen) *freezes {
	f := &freezes{in: s.Input, probes: map[string][]spell{}}
	at := map[int]int{} // orders by process
	for _, op := range s.Ops {
		i, known := at[op.Process]
		switch {
		case op.F == history.Probe:
			f.probes[op.Locks[0]] = append(f.probes[op.Locks[0]], spell{op.Index, op.Time - op.Took, op.Time, op.Error == ""})
		case op.F == history.GuardKilled:
			f.guards = append(f.guards, op.Time)
		case op.F == history.Freeze && op.Type == history.Invoke:
			at[op.Process] = len(f.orders)
			f.orders = append(f.orders, freezeOrder{
				index: op.Index, targets: op.Locks, limit: op.Limit, call: op.Time,
				thaw: history.Forever, end: history.Forever, ended: history.Info,
			})
		case !known:
		case op.F == history.Frozen:
			f.orders[i].frozen = op.Time
		case op.F == history.Thaw:
			f.orders[i].thaw = op.Time
		case op.F == history.Freeze:
			o := &f.orders[i]
			o.ended, o.reason, o.alone = op.Type, op.Value, op.Error
			if op.Type != history.Info {
				o.end = op.Time
			}
		}
	}
	return f
}

// covers says whether an order may have frozen a target at a moment between two times.
func (o *freezeOrder) covers(target string, from, to time.Duration) bool {
	if o.ended == history.Fail && o.reason == "refused" || !slices.Contains(o.targets, target) {
		return false
	}
	return o.call <= to && from <= o.release()
}

// release is when everything has been thawed at the latest. What was frozen on a node that
// is given up thaws when its time is up: it may stand still itself.
func (o *freezeOrder) release() time.Duration {
	switch {
	case o.end < history.Forever && !strings.Contains(o.alone, "gone"):
		return o.end
	case o.frozen > 0:
		return o.frozen + o.limit
	}
	return o.call + prepares + o.limit
}

// slow is the longest that somebody who was never frozen had to wait meanwhile.
func (f *freezes) slow(from, to time.Duration) (most time.Duration) {
	for _, p := range f.probes[history.Control] {
		if p.from <= to && from <= p.to {
			most = max(most, p.to-p.from)
		}
	}
	return most
}

// late: nothing stays frozen for longer than its order's time, or when its order is
// closed. (F1) An order counts its time from the moment of the freeze, so nobody waits for
// longer.
func (f *freezes) late() Result {
	r := Result{Verdict: Pass}
	f.each(func(target string, p spell) {
		longest, last, by := time.Duration(0), time.Duration(0), -1
		for _, o := range f.orders {
			if o.covers(target, p.from, p.to) {
				longest, last, by = max(longest, o.limit), max(last, o.release()), o.index
			}
		}
		if by < 0 {
			return // see stray
		}
		r.Looked++
		slack := freezeSlack + f.slow(p.from, p.to)
		switch took := p.to - p.from; {
		case !p.answered || took > longest+slack:
			r.problem(p.index, "%s stood still from %v for %v, and no order for it was for longer than %v (op %d)", target, p.from, took, longest, by)
		case p.from <= last && p.to > last+slack:
			r.problem(p.index, "%s stood still from %v for %v, though the last order for it (op %d) was over at %v", target, p.from, took, by, last)
		}
	})
	return r
}

// stray: nothing is frozen that no order is for. (F3)
func (f *freezes) stray() Result {
	r := Result{Verdict: Pass}
	f.each(func(target string, p spell) {
		r.Looked++
		if took := p.to - p.from; p.answered && took <= freezeSlack+f.slow(p.from, p.to) {
			return
		}
		if !slices.ContainsFunc(f.orders, func(o freezeOrder) bool { return o.covers(target, p.from, p.to) }) {
			r.problem(p.index, "%s stood still from %v for %v, and no order was for that", target, p.from, p.to-p.from)
		}
	})
	return r
}

func (f *freezes) each(do func(target string, p spell)) {
	for target, all := range f.probes {
		if target == history.Control {
			continue
		}
		for _, p := range all {
			do(target, p)
		}
	}
}

// early: nothing thaws before somebody asked for that, or the time was up. (F2) Whoever
// was told that all was frozen, and then that it was thawed because that was asked for,
// may take what was done meanwhile for done to something that stood still.
func (f *freezes) early() Result {
	r := Result{Verdict: Pass}
	for _, o := range f.orders {
		if o.frozen == 0 {
			continue
		}
		r.Looked++
		until, why := f.until(o)
		if why != "" {
			r.problem(o.index, "the order of op %d was ended though nothing was wrong: %s", o.index, why)
			continue
		}
		for _, t := range o.targets {
			i, _ := slices.BinarySearchFunc(f.probes[t], o.frozen, func(p spell, at time.Duration) int { return cmp.Compare(p.from, at) })
			if all := f.probes[t]; i < len(all) && all[i].answered && all[i].to < until {
				r.problem(all[i].index, "%s was frozen at %v by the order of op %d, until %v at least, and moved between %v and %v", t, o.frozen, o.index, until, all[i].from, all[i].to)
			}
		}
	}
	return r
}

// until is how long an order must have held, and why it was ended without need.
func (f *freezes) until(o freezeOrder) (until time.Duration, why string) {
	// The servers count from a moment after the call.
	deadline := o.call + f.in.End.least(o.limit)
	faulty := f.in.End.Nemesis || slices.ContainsFunc(f.guards, func(at time.Duration) bool { return o.call <= at && at <= o.end })
	switch {
	case o.ended == history.OK && o.reason == "thawed" && o.alone == "":
		if o.thaw == history.Forever {
			return 0, "nobody had asked for that"
		}
		return o.thaw, ""
	case o.ended == history.OK && o.reason == "deadline" && !faulty:
		return min(o.thaw, deadline), ""
	case faulty:
		return 0, "" // a node may have thawed by itself
	case o.ended == history.OK:
		return 0, cmp.Or(o.reason, "no reason") + " " + o.alone
	}
	return min(o.thaw, deadline), ""
}
