package fsm

import (
	"iter"
	"slices"
)

// Now returns the table's time.
func (m *Machine) Now() Millis { return m.now }

// NextDeadline returns when the next hold or order ends by itself, if any does.
func (m *Machine) NextDeadline() (Millis, bool) {
	at, c := m.deadlines.first()
	ok := c != nil
	for _, o := range m.orders.open {
		if end, timed := o.Deadline(); timed && (!ok || end < at) {
			at, ok = end, true
		}
	}
	return at, ok
}

// Status answers IPC::Locker's STATUS: Granted, with the first of locks that
// owner holds and its fence; else Busy, with who holds the first one held; else
// Done.
func (m *Machine) Status(owner string, locks []string) Result {
	var busy string
	held := false
	for _, name := range locks {
		l := m.locks[name]
		if l == nil || l.holders.head == nil {
			continue
		}
		var mine *Hold
		for _, c := range l.owned(nil, owner) {
			if c.hold != nil && (mine == nil || c.hold.Fence < mine.Fence) {
				mine = c.hold
			}
		}
		if mine != nil {
			return Result{Code: Granted, Fence: mine.Fence, Locks: []string{name}, Owner: owner}
		}
		if !held {
			held, busy = true, l.first().claimant().owner
		}
	}
	if held {
		return Result{Code: Busy, Owner: busy}
	}
	return Result{}
}

// Claim returns what the request a holds or waits for now. At most one is not nil.
func (m *Machine) Claim(a Ask) (*Hold, *Wait) {
	if c := m.asks[a]; c != nil {
		return c.hold, c.wait
	}
	return nil, nil
}

// Heir returns the request that has the hold with fence f, if f is not zero, or
// else what the claimant has among locks; ok is false if nobody has, as of a suspended
// hold. It is not the request that got it first where a later one has taken it over.
func (m *Machine) Heir(f Fence, owner string, id RequestID, locks []string) (ask Ask, ok bool) {
	if f != 0 {
		if c := m.holds.byKey[uint64(f)]; c != nil && c.hold.Suspended == nil {
			return c.ask(), true
		}
		return Ask{}, false
	}
	for _, name := range locks {
		if l := m.locks[name]; l != nil {
			if s := l.find(claimant{owner, id}); s != nil && (s.claim.hold == nil || s.claim.hold.Suspended == nil) {
				return s.claim.ask(), true
			}
		}
	}
	return Ask{}, false
}

// Hold returns the hold with a fence, nil if it is over.
func (m *Machine) Hold(f Fence) *Hold {
	if c := m.holds.byKey[uint64(f)]; c != nil {
		return c.hold
	}
	return nil
}

// Holders returns who holds a lock, by fence.
func (m *Machine) Holders(name string) []*Hold {
	l := m.locks[name]
	if l == nil || l.holders.n == 0 {
		return nil
	}
	holds := make([]*Hold, 0, l.holders.n)
	for s := l.holders.head; s != nil; s = s.next {
		holds = append(holds, s.claim.hold)
	}
	return holds
}

// Queue returns who waits for a lock, in the order of their tickets, those who are
// passed over among them. The loop must not outlast the next Apply.
func (m *Machine) Queue(name string) iter.Seq[*Wait] {
	return func(yield func(*Wait) bool) {
		l := m.locks[name]
		if l == nil {
			return
		}
		var aside []*claim
		for s := l.aside.head; s != nil; s = s.next {
			aside = append(aside, s.claim)
		}
		slices.SortFunc(aside, byAge)
		for s := l.queue.head; s != nil || len(aside) > 0; {
			var w *Wait
			if s == nil || len(aside) > 0 && byAge(aside[0], s.claim) < 0 {
				w, aside = aside[0].wait, aside[1:]
			} else {
				w, s = s.claim.wait, s.next
			}
			if !yield(w) {
				return
			}
		}
	}
}

// QueueLen returns how many wait for a lock.
func (m *Machine) QueueLen(name string) int {
	if l := m.locks[name]; l != nil {
		return l.waiting()
	}
	return 0
}

// Nodes returns the open incarnations, rising.
func (m *Machine) Nodes() []Node {
	nodes := make([]Node, 0, len(m.sessions))
	for _, s := range m.sessions {
		nodes = append(nodes, s.node)
	}
	return nodes
}

// Counts are the sizes of the table.
type Counts struct {
	Locks  int // held or waited for
	Holds  int
	Waits  int
	Nodes  int     // open incarnations
	Orders int     // open ones
	Order  OrderID // the last one given out
	Ended  OrdersEnded
	Fence  Fence  // the last one given out
	Ticket Ticket // the last one given out
}

// Counts returns the sizes of the table.
func (m *Machine) Counts() Counts {
	return Counts{
		Locks: len(m.locks), Holds: len(m.holds.claims), Waits: len(m.waits.claims),
		Nodes: len(m.sessions), Orders: len(m.orders.open), Order: m.orders.last, Ended: m.orders.ended, Fence: m.fence, Ticket: m.ticket,
	}
}
