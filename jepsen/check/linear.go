package check

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/model"
)

// checkTime is how long porcupine may look for an order for one lock.
const checkTime = 30 * time.Second

// modelled says whether the model of a mutex fits the history.
func modelled(pairs []history.Pair) bool {
	for _, p := range pairs {
		if p.Call.F == history.Acquire && p.Call.Mode != "" {
			return false
		}
	}
	return true
}

// Linearizable is the name of the check by porcupine.
const Linearizable = "linearizable (porcupine)"

// linearizable: there is an order of the operations on each lock that explains
// everything that clients were told.
func linearizable(in Input, pairs []history.Pair, a *audit) Result {
	r := Result{Check: Linearizable, Verdict: Pass}
	for lock, ops := range byLock(Operations(pairs, a, in.End.Loses)) {
		r.Looked += len(ops)
		switch porcupine.CheckOperationsTimeout(model.Lock, ops, checkTime) {
		case porcupine.Illegal:
			n := shortest(ops)
			r.problem(n.first, "%s: no order explains the %d operations until %v; the last is %s", lock, n.count, n.until, n.last)
		case porcupine.Unknown:
			if r.Verdict == Pass {
				r.Verdict = Undecided
			}
			r.Problems = append(r.Problems, fmt.Sprintf("%s: undecided within %v (%d operations, %d fences unseen)", lock, checkTime, len(ops), a.missing))
		}
	}
	return r
}

func byLock(ops []porcupine.Operation) map[string][]porcupine.Operation {
	m := map[string][]porcupine.Operation{}
	for _, op := range ops {
		k := op.Input.(model.Input).Lock
		m[k] = append(m[k], op)
	}
	return m
}

// Explain is the porcupine history and verdict of the first lock that fails, for
// its picture; ok is false if none does.
func Explain(in Input) (info porcupine.LinearizationInfo, ok bool) {
	a := newAudit(in.Events, in.End.Fence)
	pairs := fenced(history.Pairs(in.Ops), a)
	if !modelled(pairs) {
		return info, false
	}
	for _, ops := range byLock(Operations(pairs, a, in.End.Loses)) {
		if porcupine.CheckOperationsTimeout(model.Lock, ops, checkTime) != porcupine.Illegal {
			continue
		}
		_, info := porcupine.CheckOperationsVerbose(model.Lock, until(ops, shortest(ops).until), checkTime)
		return info, true
	}
	return info, false
}

// Operations turns a history into what the model reads. What clients were told
// stays as it is. An unknown outcome becomes known where a server's stream showed
// it: the first sight of it bounds the time at which it took effect. loses says that
// holds may end by themselves: then one may have ended while no stream was heard.
func Operations(pairs []history.Pair, a *audit, loses bool) []porcupine.Operation {
	var ops []porcupine.Operation
	add := func(p history.Pair, lock string, in model.Input, out model.Output, end time.Duration) {
		in.Lock = lock
		ops = append(ops, porcupine.Operation{ClientId: p.Call.Process, Input: in, Call: int64(p.Call.Time), Output: out, Return: int64(end)})
	}
	told := map[uint64]bool{}           // fences whose grants clients know
	asked := map[uint64]time.Duration{} // by fence: the call that got it
	ended := map[uint64]bool{}          // fences whose ends are somebody's operation
	byName := map[string]bool{}         // breakers whose doing is somebody's operation
	calls := map[string]time.Duration{} // by user: the call of the acquire whose end is unknown
	for _, p := range pairs {
		if granted(p) {
			told[p.Return.Fence] = true
			asked[p.Return.Fence] = p.Call.Time
		}
	}
	for _, p := range pairs {
		switch p.Call.F {
		case history.Acquire:
			acquire(p, a, told, calls, add)
		case history.Release:
			e, seen := a.ends[p.Call.Fence]
			in := model.Input{Kind: model.Release, Client: p.Call.Owner, Token: p.Call.Fence}
			in.Repeated = seen && e.Cause != "owner" || !seen && !a.complete
			end, out := p.End(), model.Output{}
			switch p.Type() {
			case history.OK:
				ended[p.Call.Fence] = ended[p.Call.Fence] || e.Cause == "owner"
			case history.Fail:
				if p.Call.Lease > 0 || p.Call.Limit > 0 {
					continue // the time is over for the holder before it is so for others
				}
				out.Status = model.NotHeld
			default:
				out.Status = model.Unknown
				if seen && e.Cause == "owner" {
					out.Status, end = model.OK, max(e.Time, p.Call.Time)
					ended[p.Call.Fence] = true
				} else if seen {
					continue // it ended some other way, which is added below
				}
			}
			for _, l := range p.Call.Locks {
				add(p, l, in, out, end)
			}
		case history.Break:
			breaks(p, a, ended, byName, add)
		case history.Read:
			if p.Type() == history.OK {
				add(p, p.Call.Locks[0], model.Input{Kind: model.Read}, model.Output{Owner: p.Return.Owner}, p.End())
			}
		}
	}
	// What clients do not know of: grants of requests that they gave up, and ends
	// by the servers' own doing.
	for f, e := range a.grants {
		if !told[f] {
			from, ok := calls[e.Owner]
			if !ok {
				from = 0
			}
			asked[f] = from
			p := history.Pair{Call: history.Op{Process: server, Time: from}}
			for _, l := range e.Locks {
				add(p, l, model.Input{Kind: model.Acquire, Client: e.Owner}, model.Output{Token: f}, max(e.Time, from))
			}
		}
	}
	for _, p := range pairs {
		if _, seen := a.ends[p.Return.Fence]; !granted(p) || seen || !loses || !a.unwatched {
			continue
		}
		for _, l := range p.Return.Locks {
			at := history.Pair{Call: history.Op{Process: server, Time: p.Call.Time}}
			add(at, l, model.Input{Kind: model.Expire, Client: "unseen", Token: p.Return.Fence}, model.Output{Status: model.Unknown}, history.Forever)
		}
	}
	for f, e := range a.ends {
		if ended[f] || e.By != "" && byName[e.By] {
			continue
		}
		p := history.Pair{Call: history.Op{Process: server, Time: min(asked[f], e.Time)}}
		for _, l := range e.Locks {
			add(p, l, model.Input{Kind: model.Expire, Client: e.Cause, Token: f}, model.Output{}, e.Time)
		}
	}
	return ops
}

// server is the process of what no client did.
const server = 1 << 30

type adder func(p history.Pair, lock string, in model.Input, out model.Output, end time.Duration)

func acquire(p history.Pair, a *audit, told map[uint64]bool, calls map[string]time.Duration, add adder) {
	in := model.Input{Kind: model.Acquire, Client: p.Call.Owner}
	switch p.Type() {
	case history.OK:
		for _, l := range p.Return.Locks {
			add(p, l, in, model.Output{Token: p.Return.Fence}, p.End())
		}
	case history.Fail:
		if p.Return.Error != history.Busy {
			return // refused for another reason than the lock's state
		}
		if p.Call.All {
			// One of them was busy, which says nothing of any one. A single one may be
			// free, and kept for somebody who waits for others beside it.
			return
		}
		for _, l := range p.Call.Locks {
			add(p, l, in, model.Output{Status: model.Busy}, p.End())
		}
	default:
		calls[p.Call.Owner] = p.Call.Time
		seen := false
		for _, e := range a.of(p.Call.Owner) {
			seen = seen || !told[e.Fence]
		}
		if seen || a.complete {
			return // added from the audit, or never granted
		}
		for _, l := range p.Call.Locks {
			add(p, l, in, model.Output{Status: model.Unknown}, history.Forever)
		}
	}
}

func breaks(p history.Pair, a *audit, ended map[uint64]bool, byName map[string]bool, add adder) {
	if f := p.Call.Fence; f != 0 {
		in := model.Input{Kind: model.Expire, Client: "janitor", Token: f}
		end, out := p.End(), model.Output{}
		e, seen := a.ends[f]
		ours := seen && e.Cause == "broken"
		switch {
		case p.Type() == history.OK:
			ended[f] = true
		case p.Type() == history.Fail:
			out.Status = model.NotHeld
		case seen && !ours:
			return
		case ours:
			end = max(e.Time, p.Call.Time)
			ended[f] = true
		default:
			out.Status = model.Unknown
		}
		for _, l := range p.Call.Locks {
			add(p, l, in, out, end)
		}
		return
	}
	in := model.Input{Kind: model.Break, Client: p.Call.Value}
	if p.Type() == history.OK {
		byName[p.Call.Value] = true
		add(p, p.Call.Locks[0], in, model.Output{Owner: p.Return.Owner}, p.End())
	}
	// Otherwise its effect, if there was one, is in the audit under its name.
}

type prefix struct {
	count int
	until time.Duration
	last  string
	first int
}

// shortest finds the shortest prefix in time of an illegal history that is illegal
// itself. A prefix is what had been called by some moment; what had not returned by
// then has an unknown end, so a legal history's prefixes are legal.
func shortest(ops []porcupine.Operation) prefix {
	lo, hi := int64(0), int64(0)
	for _, op := range ops {
		if op.Return < model.Forever {
			hi = max(hi, op.Return)
		}
	}
	for hi-lo > int64(time.Millisecond) {
		mid := lo + (hi-lo)/2
		if porcupine.CheckOperationsTimeout(model.Lock, until(ops, time.Duration(mid)), time.Second) == porcupine.Illegal {
			hi = mid
		} else {
			lo = mid
		}
	}
	cut := until(ops, time.Duration(hi))
	p := prefix{count: len(cut), until: time.Duration(hi)}
	var at int64 = -1
	for _, op := range cut {
		if op.Return <= hi && op.Return > at {
			at = op.Return
			p.last = model.Lock.DescribeOperation(op.Input, op.Output)
		}
	}
	return p
}

// until is the history as it was known at a moment.
func until(ops []porcupine.Operation, t time.Duration) []porcupine.Operation {
	var cut []porcupine.Operation
	for _, op := range ops {
		in := op.Input.(model.Input)
		switch {
		case op.Return <= int64(t):
			cut = append(cut, op)
		case op.Call <= int64(t) && in.Kind != model.Read:
			out := op.Output.(model.Output)
			if out.Status == model.OK || out.Status == model.Unknown {
				op.Return = model.Forever // it may have happened by then, as it says
				op.Output = model.Output{Status: model.Unknown}
				cut = append(cut, op)
			}
		}
	}
	return cut
}
