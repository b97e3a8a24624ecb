package check

import (
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/model"
)

// linearizable: there is an order of the operations on each lock that explains
// everything that clients were told; where requests name several locks, an order of the
// operations on all of those.
func linearizable(in Input, pairs []history.Pair, a *audit) Result {
	r := Result{Verdict: Pass}
	for _, p := range parts(Operations(pairs, a, in.End.Loses)) {
		r.Looked += len(p.ops)
		switch p.check() {
		case porcupine.Illegal:
			n := p.shortest()
			r.problem(n.first, "%s: no order explains the %d operations until %v; the last is %s", p.name, n.count, n.until, n.last)
		case porcupine.Unknown:
			if r.Verdict == Pass {
				r.Verdict = Undecided
			}
			r.Problems = append(r.Problems, fmt.Sprintf("%s: undecided within %v (%d operations, %d fences unseen)", p.name, checkTime, len(p.ops), a.missing))
		}
	}
	return r
}

// Explain is the porcupine history and verdict of the first lock that fails, and the
// model that it fails, for its picture; ok is false if none does.
func Explain(in Input) (m porcupine.Model, info porcupine.LinearizationInfo, ok bool) {
	s := see(in)
	for _, p := range parts(Operations(s.pairs, s.audit, in.End.Loses)) {
		if p.check() != porcupine.Illegal {
			continue
		}
		_, info := porcupine.CheckOperationsVerbose(p.model, until(p.ops, p.shortest().until), checkTime)
		return p.model, info, true
	}
	return m, info, false
}

// Operations turns a history into what the model reads. What clients were told
// stays as it is. An unknown outcome becomes known where a server's stream showed
// it: the first sight of it bounds the time at which it took effect. loses says that
// holds may end by themselves: then one may have ended while no stream was heard.
func Operations(pairs []history.Pair, a *audit, loses bool) []porcupine.Operation {
	var ops []porcupine.Operation
	add := func(p history.Pair, locks []string, in model.Input, out model.Output, end time.Duration) {
		in.Locks, in.Index = locks, p.Call.Index
		ops = append(ops, porcupine.Operation{ClientId: p.Call.Process, Input: in, Call: int64(p.Call.Time), Output: out, Return: int64(end)})
	}
	told := map[uint64]bool{}           // fences whose grants clients know
	asked := map[uint64]time.Duration{} // by fence: the call that got it
	ended := map[uint64]bool{}          // fences whose ends are somebody's operation
	byName := map[string]bool{}         // breakers whose doing is somebody's operation
	calls := map[string]history.Op{}    // by user: the call of the acquire whose end is unknown
	broken := map[uint64]bool{}         // fences whose holds somebody was told to have broken
	for _, p := range pairs {
		if granted(p) {
			told[p.Return.Fence] = true
			asked[p.Return.Fence] = p.Call.Time
		}
		if p.Call.F == history.Break && p.Type() == history.OK {
			broken[p.Call.Fence] = true
		}
	}
	queues := places(pairs)
	for _, p := range pairs {
		switch p.Call.F {
		case history.Acquire:
			acquire(p, a, told, calls, queues, add)
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
			add(p, p.Call.Locks, in, out, end)
		case history.Break:
			breaks(p, a, broken, ended, byName, add)
		case history.Read:
			if p.Type() == history.OK {
				add(p, p.Call.Locks[:1], model.Input{Kind: model.Read}, model.Output{Owner: p.Return.Owner}, p.End())
			}
		}
	}
	// What clients do not know of: grants of requests that they gave up, and ends
	// by the servers' own doing.
	for f, e := range a.grants {
		if !told[f] {
			from := calls[e.Owner].Time // 0 if nobody has called
			asked[f] = from
			p := history.Pair{Call: history.Op{Process: server, Time: from}}
			in := model.Input{Kind: model.Acquire, Client: e.Owner}
			in.All = len(e.Locks) > 1
			named := e.Locks
			if c, ok := calls[e.Owner]; ok {
				in.Mode, in.Slots, in.All, named = c.Mode, c.Slots, c.All, c.Locks
			}
			add(p, named, in, model.Output{Token: f, Locks: e.Locks}, max(e.Time, from))
		}
	}
	for _, p := range pairs {
		if _, seen := a.ends[p.Return.Fence]; !granted(p) || seen || !loses {
			continue
		}
		// Whoever told of all until the next grant of the lock has told of the end
		// before it. Holds that share a lock may go on beside the next.
		told := !slices.ContainsFunc(p.Return.Locks, func(l string) bool {
			next := uint64(0)
			if p.Call.Mode == "" {
				next = a.next(l, p.Return.Fence)
			}
			return !a.watched(p.Return.Fence, next)
		})
		if !told {
			at := history.Pair{Call: history.Op{Process: server, Time: p.Call.Time}}
			in := model.Input{Kind: model.Expire, Client: "unseen", Token: p.Return.Fence, Owner: p.Call.Owner}
			add(at, p.Return.Locks, in, model.Output{Status: model.Unknown}, history.Forever)
		}
	}
	for f, e := range a.ends {
		if ended[f] || e.By != "" && byName[e.By] {
			continue
		}
		p := history.Pair{Call: history.Op{Process: server, Time: min(asked[f], e.Time)}}
		add(p, e.Locks, model.Input{Kind: model.Expire, Client: e.Cause, Token: f, Owner: e.Owner}, model.Output{}, e.Time)
	}
	return ops
}

// server is the process of what no client did.
const server = 1 << 30

type adder func(p history.Pair, locks []string, in model.Input, out model.Output, end time.Duration)

// standing is the time in which a request may have had a place in a queue.
type standing struct {
	owner    string
	from, to time.Duration
}

// places are those in the queue of each lock. One whose request was not granted may be
// there for ever.
func places(pairs []history.Pair) map[string][]standing {
	m := map[string][]standing{}
	for _, p := range pairs {
		if p.Call.F != history.Acquire || p.Call.Try {
			continue
		}
		w := standing{p.Call.Owner, p.Call.Time, history.Forever}
		if p.Type() == history.OK {
			w.to = p.End()
		}
		for _, l := range p.Call.Locks {
			m[l] = append(m[l], w)
		}
	}
	return m
}

// queued says whether somebody else may have waited for one of an operation's locks.
func queued(p history.Pair, queues map[string][]standing) bool {
	return slices.ContainsFunc(p.Call.Locks, func(l string) bool {
		return slices.ContainsFunc(queues[l], func(w standing) bool {
			return w.owner != p.Call.Owner && w.from <= p.End() && p.Call.Time <= w.to
		})
	})
}

func acquire(p history.Pair, a *audit, told map[uint64]bool, calls map[string]history.Op, queues map[string][]standing, add adder) {
	in := model.Input{
		Kind: model.Acquire, Client: p.Call.Owner, Mode: p.Call.Mode, Slots: p.Call.Slots,
		All: p.Call.All, First: p.Call.Try && !p.Call.All,
	}
	switch p.Type() {
	case history.OK:
		add(p, p.Call.Locks, in, model.Output{Token: p.Return.Fence, Locks: p.Return.Locks}, p.End())
	case history.Fail:
		if p.Return.Error != history.Busy {
			return // refused for another reason than the lock's state
		}
		// One that is free may be kept for somebody who waits for others beside it.
		in.Queue = in.All && queued(p, queues)
		add(p, p.Call.Locks, in, model.Output{Status: model.Busy}, p.End())
	default:
		calls[p.Call.Owner] = p.Call
		seen := false
		for _, e := range a.of(p.Call.Owner) {
			seen = seen || !told[e.Fence]
		}
		if seen || a.complete {
			return // added from the audit, or never granted
		}
		add(p, p.Call.Locks, in, model.Output{Status: model.Unknown}, history.Forever)
	}
}

func breaks(p history.Pair, a *audit, broken, ended map[uint64]bool, byName map[string]bool, add adder) {
	if f := p.Call.Fence; f != 0 {
		in := model.Input{Kind: model.Expire, Client: "janitor", Token: f, Owner: p.Call.Owner}
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
		case ours && !broken[f] && !ended[f]: // no other break of the same hold was it
			end = max(e.Time, p.Call.Time)
			ended[f] = true
		default:
			out.Status = model.Unknown
		}
		add(p, p.Call.Locks, in, out, end)
		return
	}
	in := model.Input{Kind: model.Break, Client: p.Call.Value}
	if p.Type() == history.OK {
		byName[p.Call.Value] = true
		add(p, p.Call.Locks[:1], in, model.Output{Owner: p.Return.Owner}, p.End())
	}
	// Otherwise its effect, if there was one, is in the audit under its name.
}
