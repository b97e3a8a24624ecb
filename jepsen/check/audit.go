package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/lockerd/lockerd/jepsen/history"
)

// audit is what the event streams of all servers say together.
type audit struct {
	grants map[uint64]history.Event // by fence, first seen
	ends   map[uint64]history.Event // by fence, first seen
	passed map[place][]spanOf       // when others might pass it

	byLock  map[string][]uint64        // fences, rising
	byOwner map[string][]history.Event // grants, by rising fences
	// complete says that every fence ever given out was seen: what is not here
	// was not granted.
	complete bool
	missing  int
	streams  []stream
	last     uint64 // the highest fence told of
}

// stream is what a node told without a gap.
type stream struct {
	node   string
	fences map[uint64]bool
	final  bool // nothing of that node came after it
}

// heard parts what each node told where something may be missing: where it began anew,
// and where it skipped fences, as it does when it was sent a snapshot.
func heard(events []history.Event) (all []stream) {
	now, last := map[string]int{}, map[string]uint64{}
	for _, e := range events {
		i, ok := now[e.Node]
		skipped := e.Kind == "granted" && ok && last[e.Node] != 0 && e.Fence != last[e.Node]+1
		if !ok || e.Gap || skipped {
			if ok {
				all[i].final = false
			}
			i = len(all)
			now[e.Node], last[e.Node] = i, 0
			all = append(all, stream{node: e.Node, fences: map[uint64]bool{}, final: true})
		}
		if e.Kind == "granted" {
			all[i].fences[e.Fence] = true
			last[e.Node] = e.Fence
		}
	}
	return all
}

// watched says whether a node told all that happened between the grants of two fences;
// with 0 for the later one, until the end. What ended then it has told of.
func (a *audit) watched(fence, next uint64) bool {
	return slices.ContainsFunc(a.streams, func(s stream) bool {
		switch {
		case !s.fences[fence]:
			return false
		case next == 0:
			return s.final && s.fences[a.last]
		}
		return s.fences[next]
	})
}

// next is the fence that was given out after another for a lock; 0 if none was.
func (a *audit) next(lock string, fence uint64) uint64 {
	all := a.byLock[lock]
	i, found := slices.BinarySearch(all, fence)
	if found {
		i++
	}
	if i == len(all) {
		return 0
	}
	return all[i]
}

// had lists what an acquire was granted, as far as servers told of it, by fence.
func (a *audit) had(p history.Pair) map[uint64]history.Event {
	all := map[uint64]history.Event{}
	if granted(p) {
		if e, ok := a.grants[p.Return.Fence]; ok {
			all[e.Fence] = e
		}
		return all
	}
	for _, e := range a.byOwner[p.Call.Owner] {
		if e.Time >= p.Call.Time && slices.ContainsFunc(e.Locks, func(l string) bool { return slices.Contains(p.Call.Locks, l) }) {
			all[e.Fence] = e
		}
	}
	return all
}

func newAudit(events []history.Event, last uint64) *audit {
	a := &audit{
		grants: map[uint64]history.Event{}, ends: map[uint64]history.Event{}, passed: passes(events),
		streams: heard(events), byLock: map[string][]uint64{}, byOwner: map[string][]history.Event{},
	}
	for _, e := range events {
		m := a.grants
		switch e.Kind {
		case "released":
			m = a.ends
		case "granted":
		default:
			continue
		}
		if o, ok := m[e.Fence]; !ok || e.Time < o.Time {
			m[e.Fence] = e
		}
	}
	for f, e := range a.grants {
		a.last = max(a.last, f)
		a.byOwner[e.Owner] = append(a.byOwner[e.Owner], e)
		for _, l := range e.Locks {
			a.byLock[l] = append(a.byLock[l], f)
		}
	}
	for _, list := range a.byLock {
		slices.Sort(list)
	}
	for _, list := range a.byOwner {
		slices.SortFunc(list, func(x, y history.Event) int { return cmp.Compare(x.Fence, y.Fence) })
	}
	for f := uint64(1); f <= last; f++ {
		if _, ok := a.grants[f]; !ok {
			a.missing++
		}
	}
	a.complete = last > 0 && a.missing == 0 // with no last one, nothing is known of what was given out
	return a
}

// of lists what a user was granted.
func (a *audit) of(user string) []history.Event { return a.byOwner[user] }

// streams: the servers tell one story. Each tells of rising fences, all tell the
// same of one fence. (A1, T5)
func streams(events []history.Event, a *audit) Result {
	r := Result{Verdict: Pass}
	last := map[string]uint64{}
	for _, e := range events {
		if e.Gap {
			delete(last, e.Node) // it may begin with what was told before
			continue
		}
		r.Looked++
		switch e.Kind {
		case "granted":
			if e.Fence <= last[e.Node] {
				r.problem(0, "%s tells of fence %d after %d", e.Node, e.Fence, last[e.Node])
			}
			last[e.Node] = e.Fence
			if o := a.grants[e.Fence]; story(o) != story(e) {
				r.problem(0, "of fence %d %s tells %s, and %s tells %s", e.Fence, o.Node, story(o), e.Node, story(e))
			}
		case "released":
			if o := a.ends[e.Fence]; story(o) != story(e) {
				r.problem(0, "of fence %d %s tells %s, and %s tells %s", e.Fence, o.Node, story(o), e.Node, story(e))
			}
		}
	}
	return r
}

func story(e history.Event) string {
	return fmt.Sprintf("%s %v %s %s %s %s @%d", e.Kind, e.Locks, e.Owner, e.Mode, e.Cause, e.By, e.At)
}

// acknowledged: what clients were told is what servers did. (A2)
func acknowledged(pairs []history.Pair, a *audit) Result {
	r := Result{Verdict: Pass}
	for _, p := range pairs {
		if !granted(p) {
			continue
		}
		e, ok := a.grants[p.Return.Fence]
		switch {
		case !ok && a.complete:
			r.problem(p.Return.Index, "op %d: %s was granted fence %d, which the cluster has never given out", p.Return.Index, p.Call.Owner, p.Return.Fence)
		case !ok:
			continue // it may have been told while nobody listened
		case e.Owner != p.Call.Owner || !slices.Equal(e.Locks, p.Return.Locks):
			r.problem(p.Return.Index, "op %d: fence %d was granted to %s for %v, and the servers say %s", p.Return.Index, p.Return.Fence, p.Call.Owner, p.Return.Locks, story(e))
		case e.Time < p.Call.Time:
			r.problem(p.Return.Index, "op %d: fence %d was granted at %v, before %s asked at %v", p.Return.Index, p.Return.Fence, e.Time, p.Call.Owner, p.Call.Time)
		}
		r.Looked++
	}
	return r
}

// place is a user's in the queue of a lock.
type place struct{ owner, lock string }

// spanOf is the fences that were given out between two events, first and last included.
type spanOf struct{ first, last uint64 }

// passes finds in each stream the fences that were given out while a place was passed
// over, as its node was out of touch. What a stream has not told in full excuses nothing.
func passes(events []history.Event) map[place][]spanOf {
	type ticket struct {
		node   string
		number uint64
	}
	fence, away := map[string]uint64{}, map[ticket]uint64{}
	spans := map[place][]spanOf{}
	for _, e := range events {
		t := ticket{e.Node, e.Ticket}
		switch {
		case e.Gap:
			for o := range away {
				if o.node == e.Node {
					delete(away, o)
				}
			}
		case e.Kind == "granted":
			fence[e.Node] = e.Fence
		case e.Kind == "away":
			away[t] = fence[e.Node] + 1
		case e.Kind == "back", e.Kind == "withdrawn", e.Kind == "superseded" && e.Cause != "":
			if from, ok := away[t]; ok && from <= fence[e.Node] {
				for _, l := range e.Locks {
					spans[place{e.Owner, l}] = append(spans[place{e.Owner, l}], spanOf{from, fence[e.Node]})
				}
			}
			delete(away, t)
		}
	}
	return spans
}

// queue: who waits for one exclusive lock is served in the order of the places in
// its queue, as long as it waits; but for those whose nodes are out of touch, from the
// event that says so to the one that says that they are back. A stream is believed where it has no gap; what it
// says was checked to be what all say. A node that got a snapshot has skipped what is
// in it, as its fences and tickets show.
func queue(in Input, a *audit) Result {
	r := Result{Verdict: Pass}
	type wait struct{ ticket uint64 }
	type spot struct{ node, lock string }
	waiting := map[spot][]wait{}
	fence, ticket := map[string]uint64{}, map[string]uint64{}
	forget := func(node string) {
		for s := range waiting {
			if s.node == node {
				delete(waiting, s)
			}
		}
	}
	for _, e := range in.Events {
		if e.Gap {
			forget(e.Node)
			delete(fence, e.Node)
			delete(ticket, e.Node)
			continue
		}
		if e.Kind == "granted" && skips(fence, e.Node, e.Fence) || e.Kind == "queued" && skips(ticket, e.Node, e.Ticket) {
			forget(e.Node)
		}
		if len(e.Locks) != 1 || e.Mode != "exclusive" {
			// Other requests may pass each other lawfully: any-of takes another lock.
			continue
		}
		s := spot{e.Node, e.Locks[0]}
		q := waiting[s]
		i := slices.IndexFunc(q, func(w wait) bool { return w.ticket == e.Ticket })
		switch e.Kind {
		case "queued":
			waiting[s] = append(q, wait{e.Ticket})
		case "away":
			if i >= 0 {
				waiting[s] = slices.Delete(q, i, i+1)
			}
		case "back":
			if i < 0 {
				at := slices.IndexFunc(q, func(w wait) bool { return w.ticket > e.Ticket })
				if at < 0 {
					at = len(q)
				}
				waiting[s] = slices.Insert(q, at, wait{e.Ticket})
			}
		case "withdrawn", "superseded":
			if i >= 0 && (e.Kind == "withdrawn" || e.Cause != "") {
				waiting[s] = slices.Delete(q, i, i+1)
			}
		case "granted":
			r.Looked++
			// A lower ticket may be of one that waits for another lock as well.
			if len(q) > 0 && (e.Ticket == 0 || e.Ticket > q[0].ticket) {
				r.problem(0, "%s: %s gave fence %d to ticket %d of %s, while ticket %d waited since before", e.Locks[0], e.Node, e.Fence, e.Ticket, e.Owner, q[0].ticket)
			}
			if i >= 0 {
				waiting[s] = slices.Delete(q, i, i+1)
			}
		}
	}
	return r
}

// skips says whether a number is not the next one of its node.
func skips(last map[string]uint64, node string, n uint64) bool {
	was := last[node]
	last[node] = n
	return was != 0 && n != was+1
}
