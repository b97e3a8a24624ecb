package fsm

import (
	"cmp"
	"math/rand"
	"reflect"
	"slices"
	"testing"
)

// twin is the lock table written a second time, as simply as possible: it keeps
// holds and waits in two sorted slices and looks at all of them for everything.
// TestTwin compares every result and every event of the two.
type twin struct {
	now         Millis
	fence       Fence
	ticket      Ticket
	incarnation Incarnation
	holds       []Hold // by fence
	waits       []Wait // by ticket
	nodes       []Node
	floors      map[Incarnation]uint64
	answers     map[Ask]Result
	turns       map[claimant]uint64
	over        map[claimant]bool
	events      []Event
	order       OrderID
	orders      []Order   // all that there ever were
	done        []OrderID // as they were closed
}

func newTwin() *twin {
	return &twin{turns: map[claimant]uint64{}, over: map[claimant]bool{}, floors: map[Incarnation]uint64{}, answers: map[Ask]Result{}}
}

func (t *twin) apply(e Entry) Outcome {
	t.now, t.events = max(t.now, e.Now), nil
	var due []Hold
	for _, h := range t.holds {
		if at, ok := h.Deadline(); ok && at <= t.now {
			due = append(due, h)
		}
	}
	slices.SortStableFunc(due, func(a, b Hold) int {
		x, _ := a.Deadline()
		y, _ := b.Deadline()
		return cmp.Compare(x, y)
	})
	for _, h := range due {
		cause := CauseLease
		if at, _ := h.Deadline(); h.Limit != 0 && h.Granted+h.Limit+1 == at {
			cause = CauseLimit
		}
		t.drop(h, cause, "")
	}
	t.dueOrders()
	t.settle()
	out := Outcome{Results: []Result{}}
	for _, p := range e.Proposals {
		out.Results = append(out.Results, t.propose(p))
	}
	out.Events = t.events
	return out
}

func (t *twin) propose(p Proposal) Result {
	if p.Ask.Node == 0 {
		return t.run(Ask{}, p.Command)
	}
	if !t.open(p.Ask.Node) {
		return Result{Code: Stranger}
	}
	t.mark(false, p.Ask.Node)
	t.floors[p.Ask.Node] = max(t.floors[p.Ask.Node], p.Floor)
	if p.Ask.Seq < t.floors[p.Ask.Node] {
		return Result{Code: Stale}
	}
	if r, ok := t.answers[p.Ask]; ok {
		r.Place = 0
		return r
	}
	r := t.run(p.Ask, p.Command)
	t.answers[p.Ask] = r
	return r
}

func (t *twin) open(n Incarnation) bool {
	return slices.ContainsFunc(t.nodes, func(o Node) bool { return o.Incarnation == n })
}

func (t *twin) run(ask Ask, c Command) Result {
	if err := Validate(c); err != nil {
		return Result{Code: Refused, Reason: err.Error()}
	}
	switch c := c.(type) {
	case Acquire:
		return t.acquire(ask, c)
	case Release:
		if c.Fence != 0 {
			for _, h := range t.holds {
				if h.Fence != c.Fence {
					continue
				}
				if c.Owner != "" && c.Owner != h.Owner || c.ID != (RequestID{}) && c.ID != h.ID {
					return Result{Code: Refused, Reason: "that fence belongs to another owner"}
				}
				if h.Suspended != nil && c.Owner != "" {
					return Result{Code: NotHeld, Owner: t.busy(h.Locks)}
				}
				t.drop(h, CauseOwner, "")
				t.settle()
				return Result{Locks: h.Locks, Owner: t.busy(h.Locks)}
			}
			return Result{Code: NotHeld, Owner: t.busy(c.Locks)}
		}
		t.over[claimant{c.Owner, c.ID}] = t.over[claimant{c.Owner, c.ID}] || c.ID != RequestID{}
		mine := func(owner string, id RequestID, locks []string) bool {
			return owner == c.Owner && (c.ID == RequestID{} || c.ID == id) && meet(locks, c.Locks)
		}
		var r Result
		for _, w := range slices.Clone(t.waits) {
			if mine(w.Request.Owner, w.Request.ID, w.Request.Locks) {
				t.leave(w, EventWithdrawn, CauseOwner)
				r.Locks = union(r.Locks, w.Request.Locks)
			}
		}
		for _, h := range slices.Clone(t.holds) {
			if mine(h.Owner, h.ID, h.Locks) && h.Suspended == nil {
				t.drop(h, CauseOwner, "")
				r.Locks = union(r.Locks, h.Locks)
			}
		}
		t.settle()
		r.Owner = t.busy(c.Locks)
		return r
	case Withdraw:
		for _, w := range slices.Clone(t.waits) {
			if w.Ask == c.Ask && c.Ask.Node != 0 {
				t.leave(w, EventWithdrawn, CauseUndelivered)
			}
		}
		for _, h := range slices.Clone(t.holds) {
			if h.Ask == c.Ask && c.Ask.Node != 0 && !h.Attached {
				t.drop(h, CauseUndelivered, "")
			}
		}
		t.settle()
		if _, ok := t.answers[c.Ask]; !ok && t.open(c.Ask.Node) && c.Ask.Seq >= t.floors[c.Ask.Node] {
			t.answers[c.Ask] = Result{}
		}
		return Result{}
	case Break:
		var r Result
		hit := false
		for _, name := range append(slices.Clone(c.Locks), "") {
			for _, h := range slices.Clone(t.holds) {
				if c.Fence != 0 && (h.Fence != c.Fence || len(c.Locks) > 0 && !meet(h.Locks, c.Locks)) ||
					c.Fence == 0 && !slices.Contains(h.Locks, name) {
					continue
				}
				hit = true
				t.drop(h, CauseBroken, c.By)
				r.Locks, r.Broken = union(r.Locks, h.Locks), union(r.Broken, []string{h.Owner})
			}
		}
		if c.Fence != 0 && !hit {
			r.Code = NotHeld
		}
		t.settle()
		r.Owner = t.busy(c.Locks)
		return r
	case ProcessGone:
		dead := func(auto bool, p, q Process) bool {
			return auto && p.Host == q.Host && p.PID == q.PID &&
				(p.Start == q.Start || p.Start*q.Start == 0) && (p.Boot == q.Boot || p.Boot == "" || q.Boot == "")
		}
		for _, ticket := range c.Tickets {
			for _, w := range slices.Clone(t.waits) {
				if w.Ticket == ticket && dead(w.Request.Autounlock, w.Request.Process, c.Process) {
					t.leave(w, EventWithdrawn, CauseProcessGone)
				}
			}
		}
		for _, fence := range c.Fences {
			for _, h := range slices.Clone(t.holds) {
				switch {
				case h.Fence != fence || !dead(h.Autounlock, h.Process, c.Process):
				case h.Resumed != nil:
					t.lay(slices.IndexFunc(t.holds, func(o Hold) bool { return o.Fence == fence }), *h.Resumed, CauseProcessGone)
				default:
					t.drop(h, CauseProcessGone, "")
				}
			}
		}
		t.settle()
	case Renew:
		for i, h := range t.holds {
			if h.Fence == c.Fence && h.Owner == c.Owner && h.Suspended == nil {
				if c.Attach && h.Ask != ask {
					t.supersede(h.Ask, holdEvent(h))
					t.holds[i].Ask = ask
				}
				t.holds[i].Attached = h.Attached || c.Attach
				t.holds[i].Renewed, t.holds[i].Resumed = t.now, nil
				return Result{Fence: h.Fence, Locks: h.Locks}
			}
		}
		return Result{Code: NotHeld, Fence: c.Fence}
	case Suspend:
		for i, h := range t.holds {
			if h.Fence != c.Fence {
				continue
			}
			if s := h.Suspended; s != nil {
				if s.By != c.By || s.Context != c.Context || s.ContextID != c.ContextID {
					return Result{Code: Refused}
				}
				s := *s
				s.Ended = s.Ended || c.Ended
				t.holds[i].Suspended = &s
				return Result{Fence: h.Fence, Locks: h.Locks}
			}
			t.lay(i, Suspension{By: c.By, At: t.now, Context: c.Context, ContextID: c.ContextID, Job: h.Fence, Ended: c.Ended}, CauseNone)
			return Result{Fence: h.Fence, Locks: h.Locks}
		}
		return Result{Code: NotHeld, Fence: c.Fence}
	case Resume:
		return t.resume(ask, c)
	case NodeJoin:
		for _, n := range t.nodes {
			if n.Nonce == c.Nonce {
				return Result{Node: n.Incarnation}
			}
		}
		t.incarnation++
		t.nodes = append(t.nodes, Node{Incarnation: t.incarnation, Name: c.Name, Nonce: c.Nonce})
		t.orderName(c.Name, OrderNodeGone)
		t.settle()
		return Result{Node: t.incarnation}
	case RemoveServer:
		t.orderName(c.Name, OrderNodeLeft)
		t.settle()
	case OrderOpen:
		return t.openOrder(ask, c)
	case OrderReport:
		t.reportOrder(c)
		t.settle()
	case OrderEnd:
		if c.Order > t.order {
			return Result{Code: Refused}
		}
		for i := range t.orders {
			if o := &t.orders[i]; o.ID == c.Order && o.State < OrderThawing {
				t.endOrder(o, c.Reason, c.By, "")
			}
		}
		t.settle()
		return Result{Order: c.Order}
	case NodesAway:
		t.mark(true, c.Nodes...)
	case NodesBack:
		t.mark(false, c.Nodes...)
	case NodeGone:
		gone, ok := t.find(c.Node)
		t.nodes = slices.DeleteFunc(t.nodes, func(n Node) bool { return n.Incarnation == c.Node })
		for _, w := range slices.Clone(t.waits) {
			if c.Node != 0 && w.Ask.Node == c.Node {
				t.leave(w, EventWithdrawn, CauseNodeGone)
			}
		}
		if ok {
			t.orderNode(gone, OrderNodeGone)
		}
		t.settle()
	}
	return Result{}
}

func (t *twin) lay(i int, s Suspension, cause Cause) {
	h := t.holds[i]
	e := holdEvent(h)
	e.By, e.Context, e.Cause = s.By, s.Context, cause
	t.event(EventSuspended, e)
	t.follow(h.Ask, Result{})
	h.Ask, h.Attached, h.Autounlock, h.Lease = Ask{}, false, false, 0
	h.Suspended, h.Resumed = &s, nil
	t.holds[i] = h
}

func (t *twin) resume(ask Ask, c Resume) Result {
	i := slices.IndexFunc(t.holds, func(h Hold) bool { return h.Fence == c.Fence })
	if i < 0 {
		return Result{Code: NotHeld, Fence: c.Fence}
	}
	h := t.holds[i]
	if h.Suspended == nil || !h.Suspended.Ended || h.Suspended.ContextID != c.ContextID {
		return Result{Code: Refused}
	}
	if c.Limit == 0 && h.Limit != 0 {
		c.Limit = max(1, h.Limit-(t.now-h.Granted))
	}
	for _, o := range t.holds {
		if o.Fence != h.Fence && o.Owner == c.Owner && o.ID == c.ID && meet(o.Locks, h.Locks) {
			return Result{Code: Refused}
		}
	}
	for _, w := range t.waits {
		if w.Request.Owner == c.Owner && w.Request.ID == c.ID && meet(w.Request.Locks, h.Locks) {
			return Result{Code: Refused}
		}
	}
	t.holds = slices.Delete(t.holds, i, i+1)
	e := holdEvent(h)
	e.Cause, e.By = CauseResumed, c.By
	t.event(EventReleased, e)
	t.grant(Wait{Ask: ask, Request: Acquire{
		Owner: c.Owner, ID: c.ID, Mode: h.Mode, Slots: h.Slots, Limit: c.Limit, Lease: c.Lease, Process: c.Process, Autounlock: c.Autounlock,
	}}, h.Locks, false)
	t.holds[len(t.holds)-1].Resumed = h.Suspended
	t.orderLock(h.Fence)
	t.settle()
	return Result{Code: Granted, Fence: t.fence, Locks: h.Locks, Owner: c.Owner}
}

// mark changes whether nodes are away.
func (t *twin) mark(away bool, nodes ...Incarnation) {
	kind, changed := EventBack, map[Incarnation]bool{}
	if away {
		kind = EventAway
	}
	for i, n := range t.nodes {
		if n.Away != away && slices.Contains(nodes, n.Incarnation) {
			t.nodes[i].Away, changed[n.Incarnation] = away, true
		}
	}
	for _, w := range t.waits {
		if changed[w.Ask.Node] {
			t.event(kind, waitEvent(w))
		}
	}
	if away {
		// In the order in which they were named.
		for _, n := range nodes {
			if changed[n] {
				lost, _ := t.find(n)
				t.orderNode(lost, OrderNodeAway)
			}
		}
	}
	t.settle()
}

func (t *twin) find(n Incarnation) (Node, bool) {
	i := slices.IndexFunc(t.nodes, func(o Node) bool { return o.Incarnation == n })
	if i < 0 {
		return Node{}, false
	}
	return t.nodes[i], true
}

func (t *twin) away(w Wait) bool {
	return slices.ContainsFunc(t.nodes, func(n Node) bool { return n.Incarnation == w.Ask.Node && n.Away })
}

func (t *twin) acquire(ask Ask, a Acquire) Result {
	who := claimant{a.Owner, a.ID}
	if a.Turn != 0 && (t.over[who] || a.Turn < t.turns[who]) {
		return Result{Code: Superseded}
	}
	t.turns[who] = max(t.turns[who], a.Turn)
	for _, name := range a.Locks {
		for i, h := range t.holds {
			if h.Owner != a.Owner || h.ID != a.ID || !slices.Contains(h.Locks, name) {
				continue
			}
			if h.Suspended != nil {
				return Result{Code: Refused}
			}
			if a.Choice == All && len(union(h.Locks, a.Locks)) > len(h.Locks) || h.Mode != a.Mode || h.Slots != a.Slots {
				return Result{Code: Refused}
			}
			if h.Ask != ask {
				t.supersede(h.Ask, holdEvent(h))
			}
			h.Ask, h.Limit, h.Lease, h.Granted, h.Renewed = ask, a.Limit, a.Lease, t.now, t.now
			h.Process, h.Autounlock, h.Attached = a.Process, a.Autounlock, false
			t.holds[i] = h
			t.event(EventRenewed, holdEvent(h))
			return Result{Code: Granted, Fence: h.Fence, Locks: h.Locks, Owner: t.busy(a.Locks)}
		}
	}
	for _, h := range t.holds {
		if a.Mode == Slots && h.Mode == Slots && h.Slots != a.Slots && meet(h.Locks, a.Locks) {
			return Result{Code: Refused}
		}
	}
	own := func(w Wait) bool { return w.Request.Owner == a.Owner && w.Request.ID == a.ID }
	for _, w := range t.waits {
		if r := w.Request; !own(w) && a.Mode == Slots && r.Mode == Slots && r.Slots != a.Slots && meet(r.Locks, a.Locks) {
			return Result{Code: Refused}
		}
	}
	// In the order of the locks, as that is how the events come.
	for _, name := range a.Locks {
		for i, w := range slices.Clone(t.waits) {
			r := w.Request
			if !own(w) || !slices.Contains(r.Locks, name) {
				continue
			}
			if a.Block && slices.Equal(r.Locks, a.Locks) && r.Choice == a.Choice && r.Mode == a.Mode && r.Slots == a.Slots {
				if w.Ask != ask {
					t.supersede(w.Ask, waitEvent(w))
				}
				t.waits[i].Ask, t.waits[i].Request = ask, a
				t.event(EventRenewed, waitEvent(t.waits[i]))
				if t.away(w) && !t.away(t.waits[i]) {
					t.event(EventBack, waitEvent(t.waits[i]))
					if locks := t.ready(t.waits[i]); locks != nil {
						checks := t.checks(a, locks[0])
						t.settle()
						return Result{Code: Granted, Fence: t.fence, Locks: locks, Owner: t.busy(a.Locks), Checks: checks}
					}
				}
				return Result{Code: Queued, Ticket: w.Ticket, Owner: t.busy(a.Locks), Checks: t.checks(a, "")}
			}
			t.leave(w, EventSuperseded, CauseOwner)
			break
		}
	}
	t.settle()
	w := Wait{Ticket: t.ticket + 1, Ask: ask, Since: t.now, Request: a}
	if locks := t.ready(w); locks != nil {
		checks := t.checks(a, locks[0])
		t.grant(w, locks, false)
		return Result{Code: Granted, Fence: t.fence, Locks: locks, Owner: t.busy(a.Locks), Checks: checks}
	}
	r := Result{Code: Busy, Owner: t.busy(a.Locks), Checks: t.checks(a, "")}
	if a.Block {
		r.Code, r.Ticket = Queued, w.Ticket
		t.ticket++
		t.waits = append(t.waits, w)
		for i, name := range a.Locks {
			place := 0
			for _, o := range t.waits {
				if slices.Contains(o.Request.Locks, name) {
					place++
				}
			}
			if i == 0 || a.Choice == All && place > r.Place || a.Choice == Any && place < r.Place {
				r.Place = place
			}
		}
		t.event(EventQueued, waitEvent(w))
	}
	return r
}

// ready returns what w could be granted, whether it is queued or just comes.
func (t *twin) ready(w Wait) []string {
	var locks []string
	if t.away(w) {
		return nil
	}
	for _, name := range w.Request.Locks {
		free := true
		for _, o := range t.waits {
			free = free && (o.Ticket >= w.Ticket || t.away(o) || !slices.Contains(o.Request.Locks, name))
		}
		n := 0
		for _, h := range t.holds {
			if slices.Contains(h.Locks, name) {
				n++
				free = free && h.Mode == w.Request.Mode && h.Mode != Exclusive
			}
		}
		if free && (w.Request.Mode != Slots || n < int(w.Request.Slots)) {
			locks = append(locks, name)
		}
	}
	switch {
	case len(locks) == 0 || w.Request.Choice == All && len(locks) < len(w.Request.Locks):
		return nil
	case w.Request.Choice == Any:
		return locks[:1]
	}
	return locks
}

func (t *twin) settle() {
	for again := true; again; {
		again = false
		for i, w := range t.waits {
			if locks := t.ready(w); locks != nil {
				t.waits = slices.Delete(t.waits, i, i+1)
				t.grant(w, locks, true)
				again = true
				break
			}
		}
	}
}

func (t *twin) grant(w Wait, locks []string, waited bool) {
	t.fence++
	a := w.Request
	h := Hold{
		Fence: t.fence, Ask: w.Ask, Owner: a.Owner, ID: a.ID, Locks: locks, Mode: a.Mode, Slots: a.Slots,
		Limit: a.Limit, Lease: a.Lease, Granted: t.now, Renewed: t.now, Process: a.Process, Autounlock: a.Autounlock,
	}
	t.holds = append(t.holds, h)
	e := holdEvent(h)
	if waited {
		e.Waited, e.Ticket = true, w.Ticket
		t.follow(w.Ask, Result{Code: Granted, Fence: h.Fence, Locks: locks, Owner: h.Owner})
	}
	t.event(EventGranted, e)
}

func (t *twin) drop(h Hold, cause Cause, by string) {
	t.holds = slices.DeleteFunc(t.holds, func(o Hold) bool { return o.Fence == h.Fence })
	e := holdEvent(h)
	e.Cause, e.By = cause, by
	t.event(EventReleased, e)
	t.follow(h.Ask, Result{})
	t.orderLock(h.Fence)
}

func (t *twin) leave(w Wait, kind EventKind, cause Cause) {
	t.waits = slices.DeleteFunc(t.waits, func(o Wait) bool { return o.Ticket == w.Ticket })
	e := waitEvent(w)
	e.Cause = cause
	t.event(kind, e)
	t.follow(w.Ask, Result{})
}

func (t *twin) supersede(ask Ask, e Event) {
	t.event(EventSuperseded, e)
	t.follow(ask, Result{})
}

func (t *twin) follow(ask Ask, r Result) {
	if was, ok := t.answers[ask]; ok {
		if was.Code == Done {
			r = Result{Code: NotHeld, Fence: was.Fence}
		}
		t.answers[ask] = r
	}
}

func (t *twin) event(kind EventKind, e Event) {
	e.Kind, e.At = kind, t.now
	t.events = append(t.events, e)
}

func (t *twin) busy(names []string) string {
	for _, name := range names {
		for _, h := range t.holds {
			if slices.Contains(h.Locks, name) {
				return h.Owner
			}
		}
		for _, w := range t.waits {
			if !t.away(w) && slices.Contains(w.Request.Locks, name) {
				return w.Request.Owner
			}
		}
	}
	return ""
}

func (t *twin) checks(a Acquire, got string) (checks []Check) {
	for _, name := range a.Locks {
		if name == got || !a.Autounlock {
			break
		}
		for _, h := range t.holds {
			if slices.Contains(h.Locks, name) {
				if h.Autounlock && h.Process.Host != "" && h.Process.PID != 0 {
					checks = append(checks, Check{name, h.Process})
				}
				break
			}
		}
	}
	return checks
}

func holdEvent(h Hold) Event {
	return Event{
		Ask: h.Ask, Owner: h.Owner, ID: h.ID, Locks: h.Locks, Fence: h.Fence, Mode: h.Mode, Process: h.Process, Autounlock: h.Autounlock,
	}
}

func waitEvent(w Wait) Event {
	r := w.Request
	return Event{
		Ask: w.Ask, Owner: r.Owner, ID: r.ID, Locks: r.Locks, Ticket: w.Ticket, Mode: r.Mode, Process: r.Process, Autounlock: r.Autounlock,
	}
}

func meet(a, b []string) bool {
	return slices.ContainsFunc(a, func(name string) bool { return slices.Contains(b, name) })
}

func union(a, b []string) []string {
	a = slices.Clone(a)
	for _, name := range b {
		if !slices.Contains(a, name) {
			a = append(a, name)
		}
	}
	return a
}

func TestTwin(t *testing.T) {
	granted, queued, passed, suspended, resumed, again := 0, 0, 0, 0, 0, 0
	orders := map[OrderReason]int{} // that ended, by reason; those that were all frozen under none
	for seed := range int64(180) {
		b := make([]byte, 6000)
		rand.New(rand.NewSource(seed)).Read(b)
		s, m, dumb := &script{b: b}, New(), newTwin()
		s.table = m
		for i := 0; !s.done(); i++ {
			e := s.entry()
			got, want := m.Apply(e), dumb.apply(e)
			mustCheck(t, m)
			for j := range got.Results {
				if want.Results[j].Code == got.Results[j].Code && (got.Results[j].Code == Refused || got.Results[j].Code == NotHeld) {
					want.Results[j].Reason = got.Results[j].Reason // the twin has no words
				}
				// Breaking by fence alone, the table names the lock; the twin does not look.
				if c, ok := e.Proposals[j].Command.(Break); ok && len(c.Locks) == 0 {
					want.Results[j].Owner = got.Results[j].Owner
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, entry %d: %+v\n got %+v\nwant %+v", seed, i, e, got, want)
			}
			for _, v := range got.Events {
				switch v.Kind {
				case EventGranted:
					granted++
				case EventQueued:
					queued++
				case EventBack:
					passed++
				case EventSuspended:
					suspended++
					if v.Cause == CauseProcessGone {
						again++
					}
				case EventReleased:
					if v.Cause == CauseResumed {
						resumed++
					}
				case EventOrderFrozen, EventOrderEnded:
					orders[v.Order.Reason]++
				}
			}
		}
		compareTables(t, m, dumb)
	}
	if granted < 3_000 || queued < 3_000 || passed < 500 {
		t.Errorf("%d grants, %d waits and %d of them back are too few to mean anything", granted, queued, passed)
	}
	if suspended < 200 || resumed < 50 || again < 3 {
		t.Errorf("%d holds suspended, %d of them again, and %d resumed are too few to mean anything", suspended, again, resumed)
	}
	for reason := range OrderLock + 1 {
		if orders[reason] < 3 {
			t.Errorf("%d orders of reason %v are too few to mean anything: %v", orders[reason], reason, orders)
		}
	}
}

func compareTables(t *testing.T, m *Machine, dumb *twin) {
	t.Helper()
	s := m.Snapshot()
	holds := s.Holds()
	slices.SortFunc(holds, func(a, b *Hold) int { return cmp.Compare(a.Fence, b.Fence) })
	if len(holds) != len(dumb.holds) || len(s.Waits()) != len(dumb.waits) {
		t.Fatalf("%d holds and %d waits; the twin has %d and %d", len(holds), len(s.Waits()), len(dumb.holds), len(dumb.waits))
	}
	for i, h := range holds {
		if !reflect.DeepEqual(*h, dumb.holds[i]) {
			t.Fatalf("hold %+v\ntwin %+v", *h, dumb.holds[i])
		}
	}
	for i, w := range s.Waits() {
		if !reflect.DeepEqual(*w, dumb.waits[i]) {
			t.Fatalf("wait %+v\ntwin %+v", *w, dumb.waits[i])
		}
	}
	if !slices.Equal(m.Nodes(), dumb.nodes) {
		t.Fatalf("nodes %v\ntwin %v", m.Nodes(), dumb.nodes)
	}
	for _, o := range dumb.orders {
		if got := m.Order(o.ID); dumb.knows(o) != (got != nil) || got != nil && !reflect.DeepEqual(*got, o) {
			t.Fatalf("order %+v\ntwin %+v", got, o)
		}
	}
}
