package fsm

// candidate is a lock whose queue may have a head that can be granted now.
// ticket is that of the head when the lock was touched; heads only grow younger.
type candidate struct {
	ticket Ticket
	lock   *lock
}

// candidates is a binary heap by ticket.
type candidates []candidate

func (d *candidates) push(c candidate) {
	h := append(*d, c)
	i := len(h) - 1
	for i > 0 && c.ticket < h[(i-1)/2].ticket {
		h[i] = h[(i-1)/2]
		i = (i - 1) / 2
	}
	h[i] = c
	*d = h
}

func (d *candidates) pop() candidate {
	h := *d
	top, last := h[0], h[len(h)-1]
	h[len(h)-1] = candidate{}
	h = h[:len(h)-1]
	*d = h
	if len(h) == 0 {
		return top
	}
	i := 0
	for child := 1; child < len(h); child = 2*i + 1 {
		if child+1 < len(h) && h[child+1].ticket < h[child].ticket {
			child++
		}
		if last.ticket <= h[child].ticket {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = last
	return top
}

// touch notes that the queue of l may have a head that can be granted now.
func (m *Machine) touch(l *lock) {
	if !l.dirty && l.queue.head != nil {
		l.dirty = true
		m.dirty.push(candidate{l.queue.head.claim.wait.Ticket, l})
	}
}

// settle grants the oldest waiter that can be granted, until there is none. A
// grant may change the heads of other queues, whose locks are touched in turn.
func (m *Machine) settle() {
	for len(m.dirty) > 0 {
		next := m.dirty.pop()
		l := next.lock
		l.dirty = false
		switch head := l.queue.head; {
		case head == nil:
		case head.claim.wait.Ticket != next.ticket:
			m.touch(l) // its turn comes later
		default:
			m.promote(head.claim)
		}
	}
}

// promote turns a wait into a hold if its turn has come.
func (m *Machine) promote(c *claim) {
	locks := c.ready()
	if locks == nil {
		return
	}
	w := c.wait
	m.remove(c)
	h := m.grant(w.Ask, w.Request, locks, w, nil)
	m.follow(w.Ask, Result{Code: Granted, Fence: h.Fence, Locks: h.Locks, Owner: h.Owner})
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

// grant makes a hold; w is the wait that it ends, and s the suspension, nil if there was
// none.
func (m *Machine) grant(ask Ask, a Acquire, locks []string, w *Wait, s *Suspension) *Hold {
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
		Resumed:    s,
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
	m.lockEnded(c.hold.Fence)
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
		Fence: h.Fence, Mode: h.Mode, Process: h.Process, Autounlock: h.Autounlock, At: m.now,
	}
}

func (m *Machine) waitEvent(kind EventKind, w *Wait) Event {
	r := &w.Request
	return Event{
		Kind: kind, Ask: w.Ask, Owner: r.Owner, ID: r.ID, Locks: r.Locks,
		Ticket: w.Ticket, Mode: r.Mode, Process: r.Process, Autounlock: r.Autounlock, At: m.now,
	}
}
