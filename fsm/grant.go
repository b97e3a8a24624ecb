package fsm

// touch notes that the queue of l may have a head that can be granted now.
func (m *Machine) touch(l *lock) {
	if !l.dirty && l.queue.head != nil {
		l.dirty = true
		m.dirty = append(m.dirty, l)
	}
}

// settle grants until no head of a queue can be granted. A grant may change the
// heads of other queues; those come on the list in turn. The order is that in
// which the locks were touched, so it is the same on every replica.
func (m *Machine) settle() {
	for i := 0; i < len(m.dirty); i++ {
		l := m.dirty[i]
		for l.queue.head != nil && m.promote(l.queue.head.claim) {
		}
		l.dirty = false // only now: what the loop itself touched is settled
	}
	clear(m.dirty)
	m.dirty = m.dirty[:0]
}

// promote turns a wait into a hold if its turn has come.
func (m *Machine) promote(c *claim) bool {
	locks := c.ready()
	if locks == nil {
		return false
	}
	w := c.wait
	m.remove(c)
	h := m.grant(w.Ask, w.Request, locks, w)
	m.follow(w.Ask, Result{Code: Granted, Fence: h.Fence, Locks: h.Locks, Owner: h.Owner})
	return true
}

// ready returns what a wait can be granted now, or nil. Strictly first come,
// first served: it must be at the head of a queue to be granted that lock. All
// tickets are ordered alike in all queues, so waiters of All cannot block each
// other in a circle.
func (c *claim) ready() []string {
	r := &c.wait.Request
	for i := range c.seats {
		s := &c.seats[i]
		fits := s.lock.queue.head == s && s.lock.admits(r.Mode, r.Slots)
		switch {
		case fits && r.Choice == Any:
			return one(r.Locks, i)
		case !fits && r.Choice == All:
			return nil
		}
	}
	if r.Choice == Any {
		return nil
	}
	return r.Locks
}

// one returns names[i:i+1] without keeping the others in memory.
func one(names []string, i int) []string {
	if len(names) == 1 {
		return names
	}
	return []string{names[i]}
}

// grant makes a hold; w is the wait that it ends, nil if there was none.
func (m *Machine) grant(ask Ask, a Acquire, locks []string, w *Wait) *Hold {
	m.fence++
	h := &Hold{
		Fence:      m.fence,
		Ask:        ask,
		Owner:      a.Owner,
		ID:         a.ID,
		Locks:      locks,
		Mode:       a.Mode,
		Slots:      a.Slots,
		Limit:      a.Limit,
		Lease:      a.Lease,
		Granted:    m.now,
		Renewed:    m.now,
		Process:    a.Process,
		Autounlock: a.Autounlock,
	}
	m.addHold(h)
	e := m.holdEvent(EventGranted, h)
	if w != nil {
		e.Waited, e.Ticket = true, w.Ticket
	}
	m.events = append(m.events, e)
	return h
}

// end takes a claim from the table, without granting what it leaves: the caller
// settles when all that it ends has ended.
func (m *Machine) end(c *claim, cause Cause, by string) {
	if c.hold != nil {
		m.endHold(c, cause, by)
	} else {
		m.endWait(c, EventWithdrawn, cause)
	}
}

func (m *Machine) endHold(c *claim, cause Cause, by string) {
	m.remove(c)
	e := m.holdEvent(EventReleased, c.hold)
	e.Cause, e.By = cause, by
	m.events = append(m.events, e)
	m.follow(c.hold.Ask, Result{Code: Done})
}

func (m *Machine) endWait(c *claim, kind EventKind, cause Cause) {
	m.remove(c)
	e := m.waitEvent(kind, c.wait)
	e.Cause = cause
	m.events = append(m.events, e)
	m.follow(c.wait.Ask, Result{Code: Done})
}

// supersede tells the request that had a claim that another has it now. It comes
// before the claim's Ask changes.
func (m *Machine) supersede(c *claim, ask Ask) {
	if c.ask() == ask {
		return
	}
	if c.hold != nil {
		m.events = append(m.events, m.holdEvent(EventSuperseded, c.hold))
	} else {
		m.events = append(m.events, m.waitEvent(EventSuperseded, c.wait))
	}
	m.follow(c.ask(), Result{Code: Done})
}

func (m *Machine) holdEvent(kind EventKind, h *Hold) Event {
	return Event{
		Kind: kind, Ask: h.Ask, Owner: h.Owner, ID: h.ID, Locks: h.Locks,
		Fence: h.Fence, Mode: h.Mode, Process: h.Process, At: m.now,
	}
}

func (m *Machine) waitEvent(kind EventKind, w *Wait) Event {
	r := &w.Request
	return Event{
		Kind: kind, Ask: w.Ask, Owner: r.Owner, ID: r.ID, Locks: r.Locks,
		Ticket: w.Ticket, Mode: r.Mode, Process: r.Process, At: m.now,
	}
}
