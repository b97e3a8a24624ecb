package fsm

import (
	"fmt"
	"slices"
)

func (m *Machine) acquire(ask Ask, a Acquire) Result {
	me := claimant{a.Owner, a.ID}
	if m.turns.late(me, a.Turn) {
		return Result{Code: Superseded}
	}
	if a.Turn > 1 { // nothing is older than the first
		m.turns.note(turn{who: me, last: a.Turn, at: m.now})
	}
	a.Process = m.intern(a.Process)

	// What it has already comes first, over all the names: a repeated request
	// for any of several locks must not take a second one.
	var held *claim
	var waits []*claim
	for _, name := range a.Locks {
		l := m.locks[name]
		if l == nil {
			continue
		}
		s := l.find(me)
		switch {
		case s == nil:
		case s.claim.hold == nil:
			if !slices.Contains(waits, s.claim) {
				waits = append(waits, s.claim)
			}
		case held == nil:
			held = s.claim
		}
	}
	if held != nil {
		return m.reenter(ask, a, held)
	}
	if reason := m.slotsConflict(a, me); reason != "" {
		return refused(reason)
	}

	if len(waits) == 1 && a.Block && sameRequest(waits[0].wait.Request, a) {
		return m.rejoin(ask, a, waits[0])
	}
	for _, c := range waits {
		m.endWait(c, EventSuperseded, CauseOwner)
	}
	m.settle()

	if locks := m.free(a); locks != nil {
		checks := m.checks(a, locks[0])
		h := m.grant(ask, a, locks, nil, nil)
		return Result{Code: Granted, Fence: h.Fence, Locks: h.Locks, Owner: m.blocker(a.Locks), Checks: checks}
	}
	r := Result{Code: Busy, Owner: m.blocker(a.Locks), Checks: m.checks(a, "")}
	if a.Block {
		m.enqueue(ask, a, &r)
	}
	return r
}

// reenter answers a claimant that holds one of the named locks already.
func (m *Machine) reenter(ask Ask, a Acquire, c *claim) Result {
	h := c.hold
	if h.Suspended != nil {
		return refused(h.suspended())
	}
	if a.Choice == All {
		for _, name := range a.Locks {
			if !slices.Contains(h.Locks, name) {
				return refused(fmt.Sprintf("%s is held by this owner already, without %s; release it first",
					brief(h.Locks[0]), brief(name)))
			}
		}
	}
	if h.Mode != a.Mode {
		return refused(fmt.Sprintf("%s is held by this owner already, in %v mode and not in %v mode",
			brief(h.Locks[0]), h.Mode, a.Mode))
	}
	if h.Slots != a.Slots {
		return refused(fmt.Sprintf("%s is held by this owner already, as one of %d, and not of %d",
			brief(h.Locks[0]), h.Slots, a.Slots))
	}
	m.supersede(c, ask)
	again := *h
	again.Ask, again.Attached = ask, false
	again.Limit, again.Lease = a.Limit, a.Lease
	again.Granted, again.Renewed = m.now, m.now
	again.Process, again.Autounlock = a.Process, a.Autounlock
	m.replaceHold(c, &again)
	m.events = append(m.events, m.holdEvent(EventRenewed, &again))
	return Result{Code: Granted, Fence: h.Fence, Locks: h.Locks, Owner: m.blocker(a.Locks)}
}

// rejoin answers a claimant that waits for the same already: it keeps its place.
func (m *Machine) rejoin(ask Ask, a Acquire, c *claim) Result {
	m.supersede(c, ask)
	again := *c.wait
	again.Ask, again.Request = ask, a
	m.replaceWait(c, &again)
	m.events = append(m.events, m.waitEvent(EventRenewed, &again))
	if c.away {
		// It comes by a node that is in touch, and may find that its turn has passed.
		m.lineUp(c)
		if locks := c.ready(); locks != nil {
			checks := m.checks(a, locks[0])
			m.settle()
			h := m.locks[locks[0]].find(c.claimant()).claim.hold
			return Result{Code: Granted, Fence: h.Fence, Locks: h.Locks, Owner: m.blocker(a.Locks), Checks: checks}
		}
		m.settle()
	}
	return Result{Code: Queued, Ticket: again.Ticket, Owner: m.blocker(a.Locks), Checks: m.checks(a, "")}
}

func (m *Machine) enqueue(ask Ask, a Acquire, r *Result) {
	m.ticket++
	w := &Wait{Ticket: m.ticket, Ask: ask, Since: m.now, Request: a}
	c := m.addWait(w)
	m.events = append(m.events, m.waitEvent(EventQueued, w))
	r.Code, r.Ticket, r.Place = Queued, w.Ticket, c.seats[0].lock.waiting()
	for i := range c.seats {
		n := c.seats[i].lock.waiting()
		if a.Choice == All {
			r.Place = max(r.Place, n)
		} else {
			r.Place = min(r.Place, n)
		}
	}
}

// sameRequest reports whether b asks for just what a waits for, so that the
// place in the queue may be kept.
func sameRequest(a, b Acquire) bool {
	return a.Choice == b.Choice && a.Mode == b.Mode && a.Slots == b.Slots && slices.Equal(a.Locks, b.Locks)
}

// free returns what can be granted at once, or nil. A lock that is waited for is
// not free even if it would admit the request: nobody overtakes, but of those
// whose nodes are away.
func (m *Machine) free(a Acquire) []string {
	for i, name := range a.Locks {
		l := m.locks[name]
		fits := l == nil || l.queue.head == nil && l.admits(a.Mode, a.Slots)
		switch {
		case fits && a.Choice == Any:
			return one(a.Locks, i)
		case !fits && a.Choice == All:
			return nil
		}
	}
	if a.Choice == Any {
		return nil
	}
	return a.Locks
}

// slotsConflict says why a Slots request cannot be: another number of slots is
// in force. What me waits for itself does not count, as it gives that up.
func (m *Machine) slotsConflict(a Acquire, me claimant) string {
	if a.Mode != Slots {
		return ""
	}
	for _, name := range a.Locks {
		l := m.locks[name]
		if l == nil || l.slotSeats == 0 || l.slots == a.Slots {
			continue
		}
		others := l.slotSeats
		if s := l.find(me); s != nil {
			if mode, _ := s.claim.mode(); mode == Slots {
				others--
			}
		}
		if others > 0 {
			return fmt.Sprintf("%s has %d slots for those who use it now, and this request says %d",
				brief(name), l.slots, a.Slots)
		}
	}
	return ""
}

// blocker returns the owner of the first busy lock among names: its oldest
// holder, or its first waiter where only waiters are in the way.
func (m *Machine) blocker(names []string) string {
	for _, name := range names {
		if l := m.locks[name]; l != nil {
			if c := l.first(); c != nil {
				return c.claimant().owner
			}
		}
	}
	return ""
}

// checks lists the holders that may be dead among the locks passed over before
// got ("" for all): the oldest of each lock, if it is to end with its process.
func (m *Machine) checks(a Acquire, got string) []Check {
	if !a.Autounlock {
		return nil
	}
	var checks []Check
	for _, name := range a.Locks {
		if name == got {
			break
		}
		l := m.locks[name]
		if l == nil || l.holders.head == nil {
			continue
		}
		if p, ok := l.holders.head.claim.process(); ok {
			checks = append(checks, Check{Lock: name, Process: p})
		}
	}
	return checks
}

// brief quotes a name for a message, shortened if it is long.
func brief(name string) string {
	if len(name) > 64 {
		name = name[:61] + "..."
	}
	return fmt.Sprintf("%q", name)
}
