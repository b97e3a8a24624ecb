package fsm

import "strings"

// script turns a byte string into entries, so that a fuzzer and a random number
// generator can both drive the table. Names, owners and processes are few, so
// that requests meet.
type script struct {
	b    []byte
	now  Millis
	seqs [4]uint64 // next number of incarnations 1 to 3

	orders int      // asked for so far
	table  *Machine // where orders are looked up to be carried on, if it is set
}

func (s *script) done() bool { return len(s.b) == 0 }

// next returns a number below n, and 0 when the bytes have run out.
func (s *script) next(n int) int {
	if len(s.b) == 0 {
		return 0
	}
	v := int(s.b[0]) % n
	s.b = s.b[1:]
	return v
}

func (s *script) entry() Entry {
	if s.next(3) == 0 {
		s.now += Millis(s.next(40))
	}
	e := Entry{Now: s.now}
	for range 1 + s.next(2) {
		e.Proposals = append(e.Proposals, s.proposal())
	}
	return e
}

func (s *script) proposal() Proposal {
	p := Proposal{Command: s.command()}
	if s.next(3) == 0 {
		return p
	}
	n := 1 + s.next(3)
	p.Ask = Ask{Node: Incarnation(n)}
	switch s.next(8) {
	case 0: // repeated, late or early
		p.Ask.Seq = uint64(s.next(int(s.seqs[n]) + 3))
	default:
		s.seqs[n]++
		p.Ask.Seq = s.seqs[n]
	}
	if s.next(4) == 0 {
		p.Floor = s.seqs[n] - min(s.seqs[n], uint64(s.next(8)))
	}
	return p
}

func (s *script) command() Command {
	switch s.next(20) {
	case 0, 1, 2, 3, 4, 5, 6:
		return s.acquire()
	case 7, 8:
		return Release{Owner: s.owner(), ID: s.id(), Locks: s.locks(), Fence: Fence(s.next(3) / 2 * s.next(40))}
	case 9:
		n := 1 + s.next(3)
		return Withdraw{Ask{Incarnation(n), s.seqs[n] - min(s.seqs[n], uint64(s.next(6)))}}
	case 10:
		return Break{Locks: s.locks(), By: "root", Fence: Fence(s.next(3) / 2 * s.next(40))}
	case 11:
		c := ProcessGone{Process: s.process()}
		for range s.next(6) {
			c.Fences = append(c.Fences, Fence(s.next(60)))
			c.Tickets = append(c.Tickets, Ticket(s.next(60)))
		}
		return c
	case 12:
		if s.next(2) == 0 {
			return s.suspension()
		}
		fallthrough
	case 13:
		return Renew{Owner: s.owner(), Fence: Fence(s.next(60)), Attach: s.next(2) == 0}
	case 14:
		if s.next(4) == 0 {
			return NodeGone{Node: Incarnation(s.next(5))}
		}
		if s.next(8) == 0 {
			return RemoveServer{ID: [...]string{"a", "b", ""}[s.next(3)], Name: [...]string{"", "n1", "n3"}[s.next(3)], Out: s.next(2) == 0}
		}
		i := s.next(5)
		return NodeJoin{Name: [...]string{"n", "n1", "n2", "n1", "n3"}[i], Nonce: [16]byte{byte(i)}}
	case 15:
		nodes := []Incarnation{Incarnation(s.next(5)), Incarnation(s.next(5))}
		switch s.next(4) {
		case 0, 1:
			return NodesAway{Nodes: nodes}
		case 2:
			return NodesBack{Nodes: nodes}
		}
	case 16, 17, 18, 19:
		return s.order()
	}
	return Tick{}
}

// suspension suspends or resumes a hold, mostly one that is there, or has that come to
// nothing.
func (s *script) suspension() Command {
	f, resume := Fence(s.next(60)), s.next(2) == 0
	shown := "1"
	if s.table != nil && s.next(8) != 0 {
		var fit []Fence
		var ids []string
		for _, h := range s.table.Snapshot().Holds() {
			if h.Resumed != nil && h.Autounlock && s.next(4) != 0 {
				return ProcessGone{Process: h.Process, Fences: []Fence{h.Fence}} // it has never run
			}
			if resume == (h.Suspended != nil) {
				fit = append(fit, h.Fence)
				if resume {
					ids = append(ids, h.Suspended.ContextID)
				}
			}
		}
		if len(fit) > 0 {
			i := s.next(len(fit))
			f = fit[i]
			if resume && s.next(6) != 0 {
				shown = ids[i]
			}
		}
	}
	if !resume {
		return Suspend{Fence: f, By: [...]string{"root", "ann", ""}[min(2, s.next(12)/5)], Context: [...]string{"", "/c/1"}[s.next(2)], ContextID: [...]string{"", "1", "2"}[min(2, s.next(12)/5)], Ended: s.next(4) != 0}
	}
	c := Resume{Fence: f, ContextID: shown, By: "root", Owner: s.owner(), ID: s.id()}
	switch s.next(4) {
	case 0:
		c.Limit = Millis(s.next(60))
	case 1:
		c.Lease = Millis(s.next(60))
	}
	if s.next(4) != 0 {
		c.Autounlock, c.Process = true, s.process()
	}
	return c
}

// order makes a command of the order ledger. Most are reports of progress, or few
// orders would ever be carried out.
func (s *script) order() Command {
	if s.orders == 0 || s.next(8) == 0 {
		s.orders++
		c := OrderOpen{
			Nonce: [16]byte{byte(s.orders), byte(s.orders >> 8)}, By: "root", Action: "freeze", Spec: append([]byte(nil), "spec"[:s.next(5)]...),
			ReleaseLock: s.next(2) == 0, Attached: s.next(3) == 0, Timeout: Millis(s.next(3) * 20), Within: Millis(s.next(3) * 15),
		}
		switch s.next(8) {
		case 0:
			c.Nonce[0]-- // of another one, or of none
		case 1:
			c.AllNodes = true
		case 2, 3, 4:
			c.Nodes = []string{"n1"}
		default:
			c.Nodes = []string{"n2", [...]string{"n1", "n3", "n2"}[s.next(3)]}
		}
		if s.next(2) == 0 {
			c.Fence = Fence(1 + s.next(60))
			if s.table != nil {
				c.Fence = s.table.fence - min(s.table.fence, Fence(s.next(4)))
			}
		} else {
			c.ReleaseLock = s.next(8) == 0
		}
		return c
	}
	c := OrderReport{Order: OrderID(max(1, s.orders-s.next(8))), Node: Incarnation(1 + s.next(4)), State: PartState(1 + s.next(4))}
	if s.table != nil && s.next(8) != 0 {
		if open, _ := s.table.Orders(); len(open) > 0 {
			o := open[s.next(len(open))]
			p := o.Parts[s.next(len(o.Parts))]
			c.Order, c.Node, c.State = o.ID, p.Node, min(p.State+1, PartFrozen)
			if o.IsOver() {
				c.State = PartThawed
			}
		}
	}
	switch s.next(10) {
	case 0, 2:
		return OrderEnd{Order: c.Order, By: "ann", Reason: OrderReason(1 + s.next(5))}
	case 1, 3:
		c.State = PartState(1 + s.next(4))
	}
	switch c.State {
	case PartFrozen:
		c.Text, c.Took = "2 processes", Millis(s.next(9))
	case PartFailed:
		c.Text = "no"
	case PartThawed:
		c.Cause = [...]ThawCause{ThawQuorum, ThawAsked, ThawDeadline, ThawQuorum, ThawGuard, ThawStopping, ThawGone, ThawQuorum, ThawLocal, ThawQuorum}[s.next(10)]
	}
	return c
}

func (s *script) acquire() Acquire {
	a := Acquire{
		Owner: s.owner(), ID: s.id(), Locks: s.locks(), Choice: Choice(s.next(2)), Mode: Mode(s.next(3)),
		Block: s.next(4) != 0,
	}
	if s.next(3) == 0 {
		a.Turn = uint64(1 + s.next(4))
	}
	if a.Mode == Slots {
		a.Slots = uint32(1 + max(1, s.next(8)%3))
	}
	switch s.next(6) {
	case 0:
		a.Limit = Millis(s.next(60))
	case 1:
		a.Lease = Millis(s.next(60))
	case 2:
		a.Limit, a.Lease = Millis(s.next(60)), Millis(s.next(60))
	}
	if s.next(2) == 0 {
		a.Autounlock, a.Process = true, s.process()
	}
	return a
}

func (s *script) owner() string { return [...]string{"ann", "bob", "cat", "dan", "eve", ""}[s.next(6)] }

func (s *script) id() RequestID { return RequestID{byte(max(0, s.next(6)-3))} }

func (s *script) locks() []string {
	names := strings.Split("abcd", "")
	var locks []string
	for range max(1, s.next(6)-2) {
		i := s.next(len(names))
		locks = append(locks, names[i])
		names = append(names[:i:i], names[i+1:]...)
	}
	return locks
}

func (s *script) process() Process {
	return Process{
		Host: [...]string{"h1", "h2", ""}[s.next(3)], PID: int32(s.next(3)), Start: uint64(s.next(3)),
		Boot: [...]string{"", "x", "y"}[s.next(3)],
	}
}
