package fsm

import "slices"

func (m *Machine) release(c Release) Result {
	if c.Fence != 0 {
		return m.releaseFence(c)
	}
	if c.ID != (RequestID{}) {
		m.turns.note(turn{who: claimant{c.Owner, c.ID}, over: true, at: m.now})
	}
	var few [8]*claim
	mine := few[:0]
	for _, name := range c.Locks {
		l := m.locks[name]
		switch {
		case l == nil:
		case c.ID != RequestID{}:
			if s := l.find(claimant{c.Owner, c.ID}); s != nil {
				mine = append(mine, s.claim)
			}
		default:
			mine = l.owned(mine, c.Owner)
		}
	}
	mine = slices.DeleteFunc(mine, func(cl *claim) bool { return cl.hold != nil && cl.hold.Suspended != nil })
	// Waits go first, or they might be granted what the holds leave.
	slices.SortFunc(mine, byAge)
	mine = slices.Compact(mine)
	var ended names
	for _, cl := range mine {
		m.end(cl, CauseOwner, "")
		ended.add(cl.locks()...)
	}
	m.settle()
	return Result{Locks: ended.list, Owner: m.blocker(c.Locks)}
}

func (m *Machine) releaseFence(c Release) Result {
	cl := m.holds.byKey[uint64(c.Fence)]
	if cl == nil {
		return Result{Code: NotHeld, Owner: m.blocker(c.Locks)}
	}
	h := cl.hold
	if c.Owner != "" && c.Owner != h.Owner || c.ID != (RequestID{}) && c.ID != h.ID {
		return refused("that fence belongs to another owner")
	}
	if h.Suspended != nil && c.Owner != "" {
		return Result{Code: NotHeld, Owner: m.blocker(h.Locks), Reason: h.suspended()}
	}
	m.endHold(cl, CauseOwner, "")
	m.settle()
	return Result{Locks: h.Locks, Owner: m.blocker(h.Locks)}
}

func (m *Machine) withdraw(c Withdraw) Result {
	if cl := m.asks[c.Ask]; cl != nil {
		if cl.hold != nil && cl.hold.Attached {
			return Result{} // what is undone is the attachment: its owner has the hold still
		}
		m.end(cl, CauseUndelivered, "")
		m.settle()
		return Result{}
	}
	// The request may be on its way still. Answering it in advance keeps it
	// from taking a lock for nobody.
	s := m.session(c.Ask.Node)
	if s == nil || c.Ask.Seq < s.floor || s.answer(c.Ask.Seq) != nil {
		return Result{}
	}
	if len(s.answers) >= maxAnswers-1 { // the Withdraw itself is to be remembered too
		return refused("too many unconfirmed requests from one node")
	}
	s.remember(c.Ask.Seq, Result{})
	return Result{}
}

func (m *Machine) breakLocks(c Break) Result {
	var broken []*claim
	if c.Fence != 0 {
		cl := m.holds.byKey[uint64(c.Fence)]
		if cl == nil || len(c.Locks) > 0 && !slices.ContainsFunc(c.Locks, func(name string) bool {
			return slices.Contains(cl.hold.Locks, name)
		}) {
			return Result{Code: NotHeld, Owner: m.blocker(c.Locks)}
		}
		broken = append(broken, cl)
	} else {
		for _, name := range c.Locks {
			if l := m.locks[name]; l != nil {
				for s := l.holders.head; s != nil; s = s.next {
					broken = append(broken, s.claim)
				}
			}
		}
	}
	var r Result
	var ended, owners names
	for _, cl := range broken {
		if m.holds.byKey[uint64(cl.hold.Fence)] != cl {
			continue // an All hold, ended under another of its names
		}
		m.endHold(cl, CauseBroken, c.By)
		ended.add(cl.hold.Locks...)
		owners.add(cl.hold.Owner)
	}
	m.settle()
	r.Locks, r.Broken = ended.list, owners.list
	named := c.Locks
	if len(named) == 0 {
		named = ended.list
	}
	r.Owner = m.blocker(named)
	return r
}

func (m *Machine) processGone(c ProcessGone) Result {
	// Waits go first, or a dead process might be granted what its holds leave.
	for _, t := range c.Tickets {
		if cl := m.waits.byKey[uint64(t)]; cl != nil && cl.endsWith(c.Process) {
			m.endWait(cl, EventWithdrawn, CauseProcessGone)
		}
	}
	for _, f := range c.Fences {
		switch cl := m.holds.byKey[uint64(f)]; {
		case cl == nil || !cl.endsWith(c.Process):
		case cl.hold.Resumed != nil:
			m.lay(cl, cl.hold.Resumed, CauseProcessGone)
		default:
			m.endHold(cl, CauseProcessGone, "")
		}
	}
	m.settle()
	return Result{}
}

func (m *Machine) renew(ask Ask, c Renew) Result {
	cl := m.holds.byKey[uint64(c.Fence)]
	if cl == nil || cl.hold.Owner != c.Owner {
		return Result{Code: NotHeld, Fence: c.Fence}
	}
	if cl.hold.Suspended != nil {
		return Result{Code: NotHeld, Fence: c.Fence, Reason: cl.hold.suspended()}
	}
	again := *cl.hold
	again.Renewed, again.Resumed = m.now, nil
	if c.Attach {
		m.supersede(cl, ask)
		again.Ask, again.Attached = ask, true
	}
	m.replaceHold(cl, &again)
	return Result{Fence: again.Fence, Locks: again.Locks}
}

// names collects distinct strings for a result, as many as an answer may carry;
// the events tell of the others.
type names struct {
	list []string
	seen map[string]bool // once there are many
	size int
}

func (n *names) add(list ...string) {
	for _, s := range list {
		if n.has(s) || len(n.list) >= maxResultNames || n.size+len(s) > maxResultBytes {
			continue
		}
		n.size += len(s)
		n.list = append(n.list, s)
		if n.seen != nil {
			n.seen[s] = true
		}
	}
}

func (n *names) has(s string) bool {
	if n.seen == nil && len(n.list) < 16 {
		return slices.Contains(n.list, s)
	}
	if n.seen == nil {
		n.seen = make(map[string]bool)
		for _, earlier := range n.list {
			n.seen[earlier] = true
		}
	}
	return n.seen[s]
}
