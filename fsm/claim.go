package fsm

import "cmp"

// claimant is who excludes others: an owner and its request id.
type claimant struct {
	owner string
	id    RequestID
}

// claim is the mutable place in the table of one hold or one wait, which are
// themselves immutable. Exactly one of hold and wait is set, for its lifetime.
type claim struct {
	hold  *Hold
	wait  *Wait
	row   int  // in Machine.holds or Machine.waits
	timer int  // in Machine.deadlines, or noTimer
	away  bool // it waits, and is passed over, as its node is away

	seats []seat // one a lock, in the order of the request; addresses are linked, so never reallocated
	sole  [1]seat

	// The other autounlock claims of the same process, if it is one.
	procPrev, procNext *claim
}

func (c *claim) claimant() claimant {
	if c.hold != nil {
		return claimant{c.hold.Owner, c.hold.ID}
	}
	return claimant{c.wait.Request.Owner, c.wait.Request.ID}
}

func (c *claim) mode() (Mode, uint32) {
	if c.hold != nil {
		return c.hold.Mode, c.hold.Slots
	}
	return c.wait.Request.Mode, c.wait.Request.Slots
}

func (c *claim) ask() Ask {
	if c.hold != nil {
		return c.hold.Ask
	}
	return c.wait.Ask
}

func (c *claim) locks() []string {
	if c.hold != nil {
		return c.hold.Locks
	}
	return c.wait.Request.Locks
}

// process returns the process with which the claim ends; ok is false if there
// is none.
func (c *claim) process() (p Process, ok bool) {
	auto := false
	if c.hold != nil {
		p, auto = c.hold.Process, c.hold.Autounlock
	} else {
		p, auto = c.wait.Request.Process, c.wait.Request.Autounlock
	}
	return p, auto && p.Host != "" && p.PID != 0
}

// byAge orders waits before holds, waits by ticket and holds by fence.
func byAge(a, b *claim) int {
	switch {
	case a.wait != nil && b.wait != nil:
		return cmp.Compare(a.wait.Ticket, b.wait.Ticket)
	case a.hold != nil && b.hold != nil:
		return cmp.Compare(a.hold.Fence, b.hold.Fence)
	case a.wait != nil:
		return -1
	}
	return 1
}

func (m *Machine) addHold(h *Hold) *claim {
	c := &claim{hold: h, timer: noTimer}
	m.holds.add(uint64(h.Fence), h, c)
	m.index(c)
	m.sit(c, h.Locks)
	return c
}

func (m *Machine) addWait(w *Wait) *claim {
	c := &claim{wait: w, timer: noTimer}
	m.waits.add(uint64(w.Ticket), w, c)
	m.index(c)
	m.sit(c, w.Request.Locks)
	return c
}

func (m *Machine) replaceHold(c *claim, h *Hold) {
	m.unindex(c)
	c.hold = h
	m.holds.set(c.row, h)
	m.index(c)
}

func (m *Machine) replaceWait(c *claim, w *Wait) {
	m.unindex(c)
	c.wait = w
	m.waits.set(c.row, w)
	m.index(c)
}

func (m *Machine) remove(c *claim) {
	m.unindex(c)
	if c.hold != nil {
		m.holds.remove(uint64(c.hold.Fence), c)
	} else {
		m.waits.remove(uint64(c.wait.Ticket), c)
	}
	for i := range c.seats {
		s := &c.seats[i]
		l := s.lock
		l.rise(s)
		if l.empty() {
			delete(m.locks, l.name)
		} else {
			m.touch(l)
		}
	}
}

func (m *Machine) sit(c *claim, names []string) {
	c.seats = c.sole[:]
	if len(names) != 1 {
		c.seats = make([]seat, len(names))
	}
	for i, name := range names {
		l := m.locks[name]
		if l == nil {
			l = &lock{name: name}
			m.locks[name] = l
		}
		c.seats[i] = seat{claim: c, lock: l}
		l.sit(&c.seats[i])
	}
}

// index enters a claim wherever it is found by something that a renewal or a
// repeated request may change.
func (m *Machine) index(c *claim) {
	if ask := c.ask(); ask.Node != 0 {
		m.asks[ask] = c
		if c.wait != nil {
			if s := m.session(ask.Node); s != nil {
				s.waits[c.wait.Ticket] = c
			}
		}
	}
	if p, ok := c.process(); ok {
		m.addProcess(p, c)
	}
	if c.hold != nil {
		if at, ok := c.hold.Deadline(); ok {
			m.deadlines.add(at, c)
		}
	}
}

func (m *Machine) unindex(c *claim) {
	if ask := c.ask(); ask.Node != 0 {
		delete(m.asks, ask)
		if c.wait != nil {
			if s := m.session(ask.Node); s != nil {
				delete(s.waits, c.wait.Ticket)
			}
		}
	}
	if p, ok := c.process(); ok {
		m.removeProcess(p, c)
	}
	if c.timer != noTimer {
		m.deadlines.remove(c)
	}
}
