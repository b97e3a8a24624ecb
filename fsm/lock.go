package fsm

// lock is one name that is held or waited for. It exists only while it is.
type lock struct {
	name    string
	holders row    // rising fences
	queue   row    // rising tickets: those whose nodes are in touch
	aside   row    // waits of nodes that are away, in no order
	crowd   *crowd // nil while there are few seats

	// All Slots seats of a lock, holding or waiting, agree on the number of
	// holders it admits: slots, meaningful while slotSeats > 0.
	slots     uint32
	slotSeats int

	dirty bool // is on Machine.dirty
}

// seat is the part of a claim in one lock: among the holders, in the queue or aside.
type seat struct {
	claim      *claim
	lock       *lock
	prev, next *seat

	// In a crowd, the other seats of the same owner.
	ownerPrev, ownerNext *seat
}

// row is a doubly linked list of seats.
type row struct {
	head, tail *seat
	n          int
}

func (r *row) push(s *seat) {
	s.prev, s.next = r.tail, nil
	if r.tail == nil {
		r.head = s
	} else {
		r.tail.next = s
	}
	r.tail = s
	r.n++
}

// insert puts a waiting seat in its place by ticket. near is a seat of the row with a
// lower ticket, from where to look on, or nil.
func (r *row) insert(s, near *seat) {
	ticket := s.claim.wait.Ticket
	if r.tail == nil || r.tail.claim.wait.Ticket < ticket {
		r.push(s)
		return
	}
	next := r.head
	if near != nil {
		next = near.next
	}
	for next.claim.wait.Ticket < ticket {
		next = next.next
	}
	s.prev, s.next = next.prev, next
	if next.prev == nil {
		r.head = s
	} else {
		next.prev.next = s
	}
	next.prev = s
	r.n++
}

func (r *row) remove(s *seat) {
	if s.prev == nil {
		r.head = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		r.tail = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
	r.n--
}

// row returns the row in which a claim of this kind sits.
func (l *lock) row(c *claim) *row {
	switch {
	case c.wait == nil:
		return &l.holders
	case c.away:
		return &l.aside
	}
	return &l.queue
}

// rows are all of them.
func (l *lock) rows() [3]*row { return [...]*row{&l.holders, &l.queue, &l.aside} }

// waiting is how many wait, wherever they stand.
func (l *lock) waiting() int { return l.queue.n + l.aside.n }

func (l *lock) sit(s *seat) {
	l.row(s.claim).push(s)
	if mode, slots := s.claim.mode(); mode == Slots {
		l.slots = slots
		l.slotSeats++
	}
	switch {
	case l.crowd != nil:
		l.crowd.add(s)
	case l.holders.n+l.waiting() > fewSeats:
		l.crowd = newCrowd(l)
	}
}

func (l *lock) rise(s *seat) {
	l.row(s.claim).remove(s)
	if mode, _ := s.claim.mode(); mode == Slots {
		l.slotSeats--
	}
	if l.crowd != nil {
		l.crowd.remove(s)
	}
}

func (l *lock) empty() bool { return l.holders.head == nil && l.waiting() == 0 }

// admits reports whether the holders leave room for one more of this mode.
func (l *lock) admits(mode Mode, slots uint32) bool {
	if l.holders.head == nil {
		return true
	}
	held, _ := l.holders.head.claim.mode()
	switch {
	case held != mode || mode == Exclusive:
		return false
	case mode == Slots:
		return uint64(l.holders.n) < uint64(slots)
	}
	return true
}

// first returns who stands in the way of the next request: the oldest holder,
// or, where there is none, the head of the queue. Nobody does if it is nil.
func (l *lock) first() *claim {
	switch {
	case l.holders.head != nil:
		return l.holders.head.claim
	case l.queue.head != nil:
		return l.queue.head.claim
	}
	return nil
}

// find returns the seat of a claimant, or nil. There is at most one.
func (l *lock) find(who claimant) *seat {
	if l.crowd != nil {
		return l.crowd.claimants[who]
	}
	for _, r := range l.rows() {
		for s := r.head; s != nil; s = s.next {
			if s.claim.claimant() == who {
				return s
			}
		}
	}
	return nil
}

// owned appends the claims of an owner, whatever their request, in no order.
func (l *lock) owned(dst []*claim, owner string) []*claim {
	if l.crowd != nil {
		for s := l.crowd.owners[owner]; s != nil; s = s.ownerNext {
			dst = append(dst, s.claim)
		}
		return dst
	}
	for _, r := range l.rows() {
		for s := r.head; s != nil; s = s.next {
			if s.claim.claimant().owner == owner {
				dst = append(dst, s.claim)
			}
		}
	}
	return dst
}

// fewSeats is how many seats a lock has at most before it gets an index. Nearly
// every lock of a large table has one holder, and reads faster without.
const fewSeats = 8

// crowd finds the seats of a lock that has many.
type crowd struct {
	claimants map[claimant]*seat
	owners    map[string]*seat // head of a list through ownerNext
}

func newCrowd(l *lock) *crowd {
	c := &crowd{claimants: make(map[claimant]*seat), owners: make(map[string]*seat)}
	for _, r := range l.rows() {
		for s := r.head; s != nil; s = s.next {
			c.add(s)
		}
	}
	return c
}

func (c *crowd) add(s *seat) {
	who := s.claim.claimant()
	c.claimants[who] = s
	s.ownerPrev, s.ownerNext = nil, c.owners[who.owner]
	if s.ownerNext != nil {
		s.ownerNext.ownerPrev = s
	}
	c.owners[who.owner] = s
}

func (c *crowd) remove(s *seat) {
	who := s.claim.claimant()
	delete(c.claimants, who)
	switch {
	case s.ownerPrev != nil:
		s.ownerPrev.ownerNext = s.ownerNext
	case s.ownerNext != nil:
		c.owners[who.owner] = s.ownerNext
	default:
		delete(c.owners, who.owner)
	}
	if s.ownerNext != nil {
		s.ownerNext.ownerPrev = s.ownerPrev
	}
	s.ownerPrev, s.ownerNext = nil, nil
}
