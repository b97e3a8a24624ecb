package fsm

import (
	"errors"
	"fmt"
)

// Check verifies the invariants of the package comment and returns an error that
// names the first one that does not hold. It walks the whole table.
func (m *Machine) Check() error {
	if len(m.dirty) != 0 || len(m.events) != 0 {
		return errors.New("I4: locks are left unsettled")
	}
	if err := m.checkSessions(); err != nil {
		return err
	}
	if err := checkRoll(&m.holds, m.checkHold); err != nil {
		return err
	}
	if err := checkRoll(&m.waits, m.checkWait); err != nil {
		return err
	}
	if err := m.checkLocks(); err != nil {
		return err
	}
	if err := m.checkDeadlines(); err != nil {
		return err
	}
	if err := m.checkTurns(); err != nil {
		return err
	}
	if err := m.checkRemoved(); err != nil {
		return err
	}
	if err := m.checkOrders(); err != nil {
		return err
	}
	return m.checkIndexes()
}

func checkRoll[T any](r *roll[T], check func(*claim) error) error {
	if len(r.claims) != len(r.byKey) || len(r.claims) > len(r.pages)*pageRows {
		return errors.New("I8: the roll's indexes differ in size")
	}
	for i, c := range r.claims {
		if c.row != i {
			return fmt.Errorf("I8: the claim in row %d says %d", i, c.row)
		}
		if err := check(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) checkHold(c *claim) error {
	h := c.hold
	switch {
	case h == nil || c.wait != nil || m.holds.at(c.row) != h || m.holds.byKey[uint64(h.Fence)] != c:
		return errors.New("I8: the roll of holds is inconsistent")
	case h.Fence == 0 || h.Fence > m.fence:
		return fmt.Errorf("I2: fence %d was not given out yet", h.Fence)
	case h.Granted > m.now || h.Renewed > m.now:
		return fmt.Errorf("I7: fence %d begins in the future", h.Fence)
	}
	request := Acquire{
		Owner: h.Owner, ID: h.ID, Locks: h.Locks, Mode: h.Mode, Slots: h.Slots, Process: h.Process,
	}
	if err := request.Validate(); err != nil {
		return fmt.Errorf("I6: fence %d: %w", h.Fence, err)
	}
	if err := m.checkSuspended(h); err != nil {
		return err
	}
	return m.checkClaim(c)
}

func (m *Machine) checkWait(c *claim) error {
	w := c.wait
	switch {
	case w == nil || c.hold != nil || m.waits.at(c.row) != w || m.waits.byKey[uint64(w.Ticket)] != c:
		return errors.New("I8: the roll of waits is inconsistent")
	case w.Ticket == 0 || w.Ticket > m.ticket:
		return fmt.Errorf("I2: ticket %d was not given out yet", w.Ticket)
	case w.Since > m.now:
		return fmt.Errorf("I7: ticket %d begins in the future", w.Ticket)
	case !w.Request.Block:
		return fmt.Errorf("I6: ticket %d waits without wanting to", w.Ticket)
	case c.ready() != nil:
		return fmt.Errorf("I4: ticket %d could be granted", w.Ticket)
	case c.timer != noTimer:
		return fmt.Errorf("I7: ticket %d has a deadline", w.Ticket)
	}
	if err := w.Request.Validate(); err != nil {
		return fmt.Errorf("I6: ticket %d: %w", w.Ticket, err)
	}
	if w.Ask.Node != 0 {
		s := m.session(w.Ask.Node)
		if s == nil {
			return fmt.Errorf("I10: ticket %d waits for a node that is gone", w.Ticket)
		}
		if s.waits[w.Ticket] != c {
			return fmt.Errorf("I8: ticket %d is missing from its node", w.Ticket)
		}
	} else if c.away {
		return fmt.Errorf("I12: ticket %d stands aside, and has no node", w.Ticket)
	}
	return m.checkClaim(c)
}

// checkClaim verifies what holds and waits have in common.
func (m *Machine) checkClaim(c *claim) error {
	names := c.locks()
	if len(c.seats) != len(names) {
		return errors.New("I6: a claim has another number of seats than locks")
	}
	for i := range c.seats {
		s := &c.seats[i]
		switch {
		case s.claim != c || s.lock != m.locks[names[i]] || s.lock.name != names[i]:
			return fmt.Errorf("I6: a seat on %s is elsewhere", brief(names[i]))
		case s.lock.find(c.claimant()) != s:
			return fmt.Errorf("I5: two claims of one claimant on %s", brief(names[i]))
		}
	}
	switch ask := c.ask(); {
	case ask.Node != 0 && m.asks[ask] != c:
		return errors.New("I8: a claim is not found by its request")
	case ask.Node == 0 && ask.Seq != 0:
		return errors.New("I10: a request of no node has a number")
	}
	if p, ok := c.process(); ok {
		if h := m.hosts[p.Host]; h == nil || !c.chained(h.pids[p.PID]) {
			return errors.New("I8: a claim is not found by its process")
		}
	}
	return nil
}

// chained reports whether c is properly linked where head begins.
func (c *claim) chained(head *claim) bool {
	if c.procNext != nil && c.procNext.procPrev != c {
		return false
	}
	if c.procPrev == nil {
		return head == c
	}
	return c.procPrev.procNext == c
}

// checkLocks visits every lock by its first claim: a lock that no claim leads to
// shows in the count.
func (m *Machine) checkLocks() error {
	locks, seats, wanted := 0, 0, 0
	for _, claims := range [...][]*claim{m.holds.claims, m.waits.claims} {
		for _, c := range claims {
			wanted += len(c.seats)
			for i := range c.seats {
				l := c.seats[i].lock
				if l.oldest() != c {
					continue
				}
				locks++
				seats += l.holders.n + l.waiting()
				if err := l.check(); err != nil {
					return err
				}
			}
		}
	}
	if locks != len(m.locks) {
		return fmt.Errorf("I9: %d locks are in use and %d in the table", locks, len(m.locks))
	}
	if seats != wanted {
		return fmt.Errorf("I6: %d seats for %d claimed", seats, wanted)
	}
	return nil
}

// oldest returns one claim of a lock, the same one until it leaves.
func (l *lock) oldest() *claim {
	for _, r := range l.rows() {
		if r.head != nil {
			return r.head.claim
		}
	}
	return nil
}

func (l *lock) check() error {
	if l.dirty {
		return fmt.Errorf("I4: %s is left unsettled", brief(l.name))
	}
	slotSeats := 0
	for _, r := range l.rows() {
		n := 0
		var prev *seat
		for s := r.head; s != nil; prev, s = s, s.next {
			n++
			if s.prev != prev || s.lock != l || l.row(s.claim) != r {
				return fmt.Errorf("I6: the seats of %s are inconsistent", brief(l.name))
			}
			if prev != nil && r != &l.aside && byAge(prev.claim, s.claim) >= 0 {
				return fmt.Errorf("I3: the seats of %s are out of order", brief(l.name))
			}
			mode, slots := s.claim.mode()
			if mode == Slots {
				slotSeats++
				if slots != l.slots {
					return fmt.Errorf("I1: %s has both %d and %d slots", brief(l.name), l.slots, slots)
				}
			}
			if r == &l.holders && n > 1 {
				if first, _ := r.head.claim.mode(); mode == Exclusive || mode != first {
					return fmt.Errorf("I1: %s has holders that exclude each other", brief(l.name))
				}
			}
		}
		if n != r.n || r.tail != prev {
			return fmt.Errorf("I6: the seats of %s are miscounted", brief(l.name))
		}
	}
	if slotSeats != l.slotSeats {
		return fmt.Errorf("I8: the slots of %s are miscounted", brief(l.name))
	}
	if l.holders.n > 0 {
		if mode, slots := l.holders.head.claim.mode(); mode == Slots && uint64(l.holders.n) > uint64(slots) {
			return fmt.Errorf("I1: %s has %d holders for %d slots", brief(l.name), l.holders.n, slots)
		}
	}
	return l.checkCrowd()
}

func (l *lock) checkCrowd() error {
	if l.crowd == nil {
		return nil
	}
	n := l.holders.n + l.waiting()
	if len(l.crowd.claimants) != n {
		return fmt.Errorf("I8: the crowd of %s is miscounted", brief(l.name))
	}
	for _, r := range l.rows() {
		for s := r.head; s != nil; s = s.next {
			head := l.crowd.owners[s.claim.claimant().owner]
			switch {
			case s.ownerNext != nil && s.ownerNext.ownerPrev != s,
				s.ownerPrev != nil && s.ownerPrev.ownerNext != s,
				s.ownerPrev == nil && head != s:
				return fmt.Errorf("I8: the owners of %s are inconsistent", brief(l.name))
			}
		}
	}
	return nil
}

func (m *Machine) checkDeadlines() error {
	timed := 0
	for _, c := range m.holds.claims {
		at, ok := c.hold.Deadline()
		if !ok {
			if c.timer != noTimer {
				return fmt.Errorf("I7: fence %d has a deadline without a limit", c.hold.Fence)
			}
			continue
		}
		timed++
		switch {
		case c.timer < 0 || c.timer >= len(m.deadlines) || m.deadlines[c.timer] != timer{at, c}:
			return fmt.Errorf("I7: the deadline of fence %d is misplaced", c.hold.Fence)
		case at <= m.now:
			return fmt.Errorf("I7: fence %d should have ended at %d", c.hold.Fence, at)
		case c.timer > 0 && m.deadlines[c.timer].before(m.deadlines[(c.timer-1)/2]):
			return errors.New("I7: the deadlines are out of order")
		}
	}
	if timed != len(m.deadlines) {
		return fmt.Errorf("I7: %d deadlines for %d holds with one", len(m.deadlines), timed)
	}
	return nil
}

func (m *Machine) checkSessions() error {
	nonces := make(map[[16]byte]bool, len(m.sessions))
	last := Incarnation(0)
	for _, s := range m.sessions {
		n := s.node
		for _, c := range s.claims() {
			if c.away != n.Away {
				return fmt.Errorf("I12: ticket %d stands in line or aside against what its node does", c.wait.Ticket)
			}
		}
		switch {
		case n.Incarnation <= last || n.Incarnation > m.incarnation:
			return fmt.Errorf("I2: incarnation %d is out of order", n.Incarnation)
		case n.Name == "" || n.Nonce == [16]byte{} || nonces[n.Nonce]:
			return fmt.Errorf("I10: incarnation %d has no name, or another's nonce", n.Incarnation)
		case len(s.answers) > maxAnswers:
			return fmt.Errorf("I10: incarnation %d has %d answers", n.Incarnation, len(s.answers))
		}
		last, nonces[n.Nonce] = n.Incarnation, true
		for i, a := range s.answers {
			if a.seq < s.floor || i > 0 && a.seq <= s.answers[i-1].seq {
				return fmt.Errorf("I10: answer %d of incarnation %d is out of order", a.seq, n.Incarnation)
			}
			if !m.upToDate(Ask{n.Incarnation, a.seq}, a.result) {
				return fmt.Errorf("I10: answer %d of incarnation %d is out of date", a.seq, n.Incarnation)
			}
		}
	}
	return nil
}

// upToDate reports whether a remembered answer says what the request has now.
func (m *Machine) upToDate(ask Ask, r *Result) bool {
	c := m.asks[ask]
	switch {
	case r.Place != 0:
		return false
	case r.Code == Granted:
		return c != nil && c.hold != nil && c.hold.Fence == r.Fence
	case r.Code == Queued:
		return c != nil && c.wait != nil && c.wait.Ticket == r.Ticket
	case r.Code == Done && r.Fence != 0:
		return c != nil && c.hold != nil && c.hold.Fence == r.Fence || c == nil
	}
	return c == nil
}

func (m *Machine) checkTurns() error {
	t := &m.turns
	list := t.all()
	if len(list) != len(t.live) || len(list) > maxTurns {
		return fmt.Errorf("I11: %d turns, of %d claimants", len(list), len(t.live))
	}
	last := Millis(0)
	for _, v := range list {
		if v.at < last || v.at > m.now || m.now-v.at >= turnSpan {
			return fmt.Errorf("I11: the turn of %s is out of time", brief(v.who.owner))
		}
		last = v.at
	}
	return nil
}

// checkIndexes verifies that the indexes hold nothing beyond the claims, each of
// which was found in them already.
func (m *Machine) checkIndexes() error {
	asks, processes, waits := 0, 0, 0
	for _, claims := range [...][]*claim{m.holds.claims, m.waits.claims} {
		for _, c := range claims {
			if c.ask().Node != 0 {
				asks++
				if c.wait != nil {
					waits++
				}
			}
			if p, ok := c.process(); ok && m.hosts[p.Host].pids[p.PID] == c {
				processes++ // one a process: the head of its list
			}
		}
	}
	for _, s := range m.sessions {
		waits -= len(s.waits)
	}
	pids := 0
	for _, h := range m.hosts {
		pids += len(h.pids)
		if len(h.pids) == 0 {
			return errors.New("I9: a host without processes is left")
		}
	}
	switch {
	case asks != len(m.asks):
		return errors.New("I8: requests without a claim are left")
	case waits != 0:
		return errors.New("I8: nodes have waits that are gone")
	case pids != processes:
		return errors.New("I8: processes without a claim are left")
	}
	return nil
}
