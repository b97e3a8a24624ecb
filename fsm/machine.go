package fsm

// Hold is one grant. Its fields are never changed once it is in the table: a
// renewal puts a new Hold in its place, so a snapshot only copies pointers.
type Hold struct {
	Fence      Fence
	Ask        Ask // the request that took it last
	Owner      string
	ID         RequestID
	Locks      []string // one, or all those of an All request
	Mode       Mode
	Slots      uint32
	Limit      Millis
	Lease      Millis
	Granted    Millis // when it began, or when its claimant last asked for it again; Limit counts from here
	Renewed    Millis // last proof of life; Lease counts from here
	Process    Process
	Autounlock bool
	Attached   bool        // Ask is that of a Renew, and the hold itself is older
	Suspended  *Suspension // nil unless its job is on disk
	Resumed    *Suspension // what it goes back to if its process ends before it is renewed
}

// Wait is a queued request; like Hold, never changed once in the table. Its
// place in every one of its queues is its Ticket.
type Wait struct {
	Ticket  Ticket
	Ask     Ask
	Since   Millis
	Request Acquire
}

// Node is an open incarnation.
type Node struct {
	Incarnation Incarnation
	Name        string
	Nonce       [16]byte
	Away        bool // out of touch with the leader: its places are passed over
}

// Machine is the lock table. It is not safe for concurrent use; the values that
// its methods return are immutable and stay valid.
type Machine struct {
	now Millis

	// The last ones given out. They only rise.
	fence       Fence
	ticket      Ticket
	incarnation Incarnation

	locks     map[string]*lock // exactly those that are held or waited for
	holds     roll[Hold]       // by fence
	waits     roll[Wait]       // by ticket
	asks      map[Ask]*claim   // what each node's request has now
	hosts     map[string]*host // autounlock claims by host and pid
	sessions  []*session       // open incarnations, rising
	deadlines deadlines
	turns     turns
	removed   []RemoveServer // servers out of the cluster
	orders    orders

	// Of the entry being applied.
	dirty  candidates
	events []Event
}

// New returns an empty table.
func New() *Machine {
	return &Machine{
		locks: make(map[string]*lock),
		holds: newRoll[Hold](),
		waits: newRoll[Wait](),
		asks:  make(map[Ask]*claim),
		hosts: make(map[string]*host),
		turns: turns{live: make(map[claimant]int)},
	}
}

// Apply carries out an entry: time moves on, what is due expires, and then the
// proposals take effect one after the other. It is total: whatever is wrong with
// a proposal is told in its result. The table keeps the slices of the commands;
// the caller must not change them afterwards.
func (m *Machine) Apply(e Entry) Outcome {
	m.now = max(m.now, e.Now)
	m.turns.forget(m.now)
	m.expire()
	out := Outcome{Results: make([]Result, len(e.Proposals))}
	for i, p := range e.Proposals {
		out.Results[i] = m.propose(p)
	}
	out.Events, m.events = m.events, nil
	return out
}

// propose answers one proposal, a repeated one from memory.
func (m *Machine) propose(p Proposal) Result {
	if p.Ask.Node == 0 {
		return m.run(Ask{}, p.Command)
	}
	s := m.session(p.Ask.Node)
	if s == nil {
		return Result{Code: Stranger}
	}
	if s.node.Away {
		m.nodesBack(p.Ask.Node) // or it could not ask
	}
	s.forget(p.Floor)
	if p.Ask.Seq < s.floor {
		return Result{Code: Stale}
	}
	if r := s.answer(p.Ask.Seq); r != nil {
		return *r
	}
	if len(s.answers) >= maxAnswers {
		return Result{Code: Refused, Reason: "too many unconfirmed requests from one node"}
	}
	r := m.run(p.Ask, p.Command)
	s.remember(p.Ask.Seq, r)
	return r
}

func (m *Machine) run(ask Ask, c Command) Result {
	if err := Validate(c); err != nil {
		return refused(err.Error())
	}
	switch c := c.(type) {
	case Acquire:
		return m.acquire(ask, c)
	case Release:
		return m.release(c)
	case Withdraw:
		return m.withdraw(c)
	case Break:
		return m.breakLocks(c)
	case ProcessGone:
		return m.processGone(c)
	case Renew:
		return m.renew(ask, c)
	case Suspend:
		return m.suspend(c)
	case Resume:
		return m.resume(ask, c)
	case NodeJoin:
		return m.nodeJoin(c)
	case NodeGone:
		return m.nodeGone(c)
	case NodesAway:
		return m.nodesAway(c)
	case NodesBack:
		return m.nodesBack(c.Nodes...)
	case RemoveServer:
		return m.removeServer(c)
	case OrderOpen:
		return m.orderOpen(ask, c)
	case OrderReport:
		return m.orderReport(c)
	case OrderEnd:
		return m.orderEnd(c)
	}
	return Result{} // Tick: its entry's time was all of it
}

// expire ends every hold whose deadline has come, earliest first, then every order,
// and only then grants, so that a waiter of Any may choose among all that came free.
func (m *Machine) expire() {
	for {
		at, c := m.deadlines.first()
		if c == nil || at > m.now {
			break
		}
		cause := CauseLease
		if limit, ok := expiry(c.hold.Granted, c.hold.Limit); ok && limit == at {
			cause = CauseLimit
		}
		m.endHold(c, cause, "")
	}
	m.expireOrders()
	m.settle()
}

func refused(reason string) Result { return Result{Code: Refused, Reason: reason} }
