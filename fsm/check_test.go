package fsm

import (
	"fmt"
	"strings"
	"testing"
)

// sound returns a small table with something of everything.
func sound(t *testing.T) *Machine {
	t.Helper()
	m := New()
	auto := Process{Host: "h", PID: 1}
	commands := []Command{
		NodeJoin{Name: "n1", Nonce: [16]byte{1}},
		NodeJoin{Name: "n2", Nonce: [16]byte{2}},
		Acquire{Owner: "ann", Locks: []string{"a"}, Limit: 100, Process: auto, Autounlock: true},                    // fence 1
		Acquire{Owner: "ann", Locks: []string{"b"}, Limit: 200},                                                     // fence 2
		Acquire{Owner: "ann", Locks: []string{"c"}, Lease: 300},                                                     // fence 3
		Acquire{Owner: "bob", Locks: []string{"a", "b"}, Choice: All, Block: true, Process: auto, Autounlock: true}, // ticket 1
		Acquire{Owner: "cat", Locks: []string{"a"}, Block: true},                                                    // ticket 2
		Acquire{Owner: "ann", Locks: []string{"s"}, Mode: Slots, Slots: 2},                                          // fence 4
		Acquire{Owner: "bob", Locks: []string{"s"}, Mode: Slots, Slots: 2},                                          // fence 5
		Acquire{Owner: "ann", Locks: []string{"crowd"}},                                                             // fence 6
		Acquire{Owner: "bob", Locks: []string{"free"}, Process: Process{Host: "h2", PID: 2}, Autounlock: true},      // fence 7
		Acquire{Owner: "dan", ID: RequestID{1}, Locks: []string{"a"}, Block: true, Process: auto, Autounlock: true}, // ticket 3
		Acquire{Owner: "dan", ID: RequestID{2}, Turn: 2, Locks: []string{"free"}, Process: auto, Autounlock: true},  // busy
		Release{Owner: "eve", ID: RequestID{3}, Locks: []string{"a"}},
		RemoveServer{ID: "6f0c", Name: "n2", Addr: "h2:1753"},
		RemoveServer{ID: "6f0d", Name: "n3", Addr: "h3:1753", Out: true},
	}
	for i := range 10 {
		commands = append(commands, Acquire{Owner: fmt.Sprint("o", i/2), ID: RequestID{byte(i)}, Locks: []string{"crowd"}, Block: true})
	}
	for i, c := range commands {
		p := Proposal{Command: c}
		if i > 1 {
			p.Ask = Ask{Incarnation(1 + i%2), uint64(i)}
		}
		m.Apply(Entry{Now: 10, Proposals: []Proposal{p}})
	}
	mustCheck(t, m)
	return m
}

// TestCheckFinds damages a table in one place at a time. Check that cannot fail
// would prove nothing anywhere else.
func TestCheckFinds(t *testing.T) {
	hold := func(m *Machine, f Fence) *claim { return m.holds.byKey[uint64(f)] }
	wait := func(m *Machine, n Ticket) *claim { return m.waits.byKey[uint64(n)] }
	editHold := func(m *Machine, f Fence, edit func(*Hold)) {
		c := hold(m, f)
		h := *c.hold
		edit(&h)
		c.hold = &h
		m.holds.set(c.row, &h)
	}
	editWait := func(m *Machine, n Ticket, edit func(*Wait)) {
		c := wait(m, n)
		w := *c.wait
		edit(&w)
		c.wait = &w
		m.waits.set(c.row, &w)
	}
	for i, tc := range []struct {
		want   string
		damage func(m *Machine)
	}{
		{"I4: locks are left", func(m *Machine) { m.dirty = append(m.dirty, candidate{}) }},
		{"I4: locks are left", func(m *Machine) { m.events = append(m.events, Event{}) }},
		{"I4: \"a\" is left", func(m *Machine) { m.locks["a"].dirty = true }},
		{"I2: incarnation", func(m *Machine) { m.incarnation = 1 }},
		{"I2: incarnation", func(m *Machine) { m.sessions[0], m.sessions[1] = m.sessions[1], m.sessions[0] }},
		{"I10: incarnation 1 has no name", func(m *Machine) { m.sessions[0].node.Name = "" }},
		{"I10: incarnation 2 has no name, or another's", func(m *Machine) { m.sessions[1].node.Nonce = m.sessions[0].node.Nonce }},
		{"answers", func(m *Machine) { m.sessions[0].answers = make([]answer, maxAnswers+1) }},
		{"I10: answer 2", func(m *Machine) { m.sessions[0].floor = 3 }},
		{"is out of order", func(m *Machine) { a := m.sessions[0].answers; a[0], a[1] = a[1], a[0] }},
		{"out of date", func(m *Machine) { m.sessions[0].answers[0].result = &Result{Code: Granted, Fence: 9} }},
		{"out of date", func(m *Machine) { m.sessions[0].answers[0].result = &Result{Code: Queued, Ticket: 9} }},
		{"out of date", func(m *Machine) { m.sessions[0].answers[0].result = &Result{} }},
		{"out of date", func(m *Machine) { m.sessions[0].answers[0].result = &Result{Fence: 9} }},
		{"out of date", func(m *Machine) { m.sessions[0].answers[0].result = &Result{Code: Granted, Fence: 1, Place: 1} }},
		{"I8: the roll's indexes", func(m *Machine) { delete(m.holds.byKey, 1) }},
		{"I8: the claim in row 0", func(m *Machine) { m.holds.claims[0].row = 1 }},
		{"I8: the roll of holds", func(m *Machine) { h := *hold(m, 1).hold; m.holds.set(0, &h) }},
		{"I8: the roll of waits", func(m *Machine) { w := *wait(m, 1).wait; m.waits.set(0, &w) }},
		{"I2: fence 7", func(m *Machine) { m.fence = 6 }},
		{"I2: ticket", func(m *Machine) { m.ticket = 2 }},
		{"I7: fence", func(m *Machine) { m.now = 9 }},
		{"I7: ticket", func(m *Machine) { editWait(m, 1, func(w *Wait) { w.Since = 11 }) }},
		{"I6: fence 1: slots mode", func(m *Machine) { editHold(m, 1, func(h *Hold) { h.Mode = Slots }) }},
		{"I6: ticket 1 waits without", func(m *Machine) { editWait(m, 1, func(w *Wait) { w.Request.Block = false }) }},
		{"I6: ticket 1: slots mode", func(m *Machine) { editWait(m, 1, func(w *Wait) { w.Request.Mode = Slots }) }},
		{"I4: ticket 1 could be granted", func(m *Machine) {
			editHold(m, 1, func(h *Hold) { h.Mode = Shared })
			editWait(m, 1, func(w *Wait) { w.Request.Mode, w.Request.Choice = Shared, Any })
		}},
		{"I7: ticket 1 has a deadline", func(m *Machine) { wait(m, 1).timer = 0 }},
		{"I10: ticket", func(m *Machine) { m.sessions = m.sessions[:1] }},
		{"is missing from its node", func(m *Machine) { delete(m.sessions[1].waits, 1) }},
		{"I6: a claim has another number", func(m *Machine) { wait(m, 1).seats = wait(m, 1).seats[:1] }},
		{"I6: a seat on \"b\" is elsewhere", func(m *Machine) { wait(m, 1).seats[1].lock = m.locks["a"] }},
		{"I6: a seat on \"c\" is elsewhere", func(m *Machine) { delete(m.locks, "c") }},
		{"I5: two claims of one claimant on \"a\"", func(m *Machine) { editWait(m, 2, func(w *Wait) { w.Request.Owner = "ann" }) }},
		{"I8: a claim is not found by its request", func(m *Machine) { m.sessions[0].forget(99); delete(m.asks, hold(m, 1).hold.Ask) }},
		{"I10: a request of no node", func(m *Machine) { m.sessions[0].forget(99); editHold(m, 1, func(h *Hold) { h.Ask.Node = 0 }) }},
		{"I8: a claim is not found by its process", func(m *Machine) { delete(m.hosts, "h") }},
		{"I8: a claim is not found by its process", func(m *Machine) { m.hosts["h2"].pids[2] = hold(m, 1) }},
		{"I8: a claim is not found by its process", func(m *Machine) { m.hosts["h"].pids[1].procNext.procPrev = nil }},
		{"I8: a claim is not found by its process", func(m *Machine) { m.hosts["h"].pids[1].procNext = nil }},
		{"I9: 6 locks are in use and 7", func(m *Machine) { m.locks["empty"] = &lock{name: "empty"} }},
		{"I6: the seats of \"a\" are inconsistent", func(m *Machine) { wait(m, 2).seats[0].prev = nil }},
		{"I6: the seats of \"s\" are miscounted", func(m *Machine) { m.locks["s"].holders.n = 3 }},
		{"I6: the seats of \"a\" are miscounted", func(m *Machine) { m.locks["a"].queue.tail = nil }},
		{"I3: the seats of \"s\" are out of order", func(m *Machine) { l := m.locks["s"]; s := l.holders.head; l.holders.remove(s); l.holders.push(s) }},
		{"I3: the seats of \"crowd\" are out of order", func(m *Machine) { l := m.locks["crowd"]; s := l.queue.head.next; l.queue.remove(s); l.queue.push(s) }},
		{"I1: \"s\" has both", func(m *Machine) { editHold(m, 5, func(h *Hold) { h.Slots = 3 }) }},
		{"I1: \"s\" has holders that exclude", func(m *Machine) { editHold(m, 5, func(h *Hold) { h.Mode, h.Slots = Shared, 0 }) }},
		{"I1: \"s\" has 2 holders for 1 slots", func(m *Machine) {
			m.locks["s"].slots = 1
			editHold(m, 4, func(h *Hold) { h.Slots = 1 })
			editHold(m, 5, func(h *Hold) { h.Slots = 1 })
		}},
		{"I8: the slots of \"s\"", func(m *Machine) { m.locks["s"].slotSeats = 3 }},
		{"I8: the crowd of \"crowd\"", func(m *Machine) { m.locks["crowd"].crowd.claimants[claimant{}] = nil }},
		{"I8: the owners of \"crowd\"", func(m *Machine) { delete(m.locks["crowd"].crowd.owners, "o1") }},
		{"I7: fence 2 has a deadline without", func(m *Machine) { editHold(m, 2, func(h *Hold) { h.Limit = 0 }) }},
		{"I7: the deadline of fence 2", func(m *Machine) { editHold(m, 2, func(h *Hold) { h.Limit = 201 }) }},
		{"I7: the deadline of fence 2", func(m *Machine) { hold(m, 2).timer = noTimer }},
		{"I13: 2 servers removed, of 1 ids", func(m *Machine) { m.removed[1].ID = m.removed[0].ID }},
		{"I13: no server is named", func(m *Machine) { m.removed[0].ID = "" }},
		{"I13: 1025 servers removed", func(m *Machine) {
			for i := range maxRemoved - 1 {
				m.removed = append(m.removed, RemoveServer{ID: fmt.Sprint(i)})
			}
		}},
		{"I11: 2 turns, of 3 claimants", func(m *Machine) { m.turns.live[claimant{}] = 9 }},
		{"I11: the turn of \"eve\" is out of time", func(m *Machine) { m.turns.list[1].at = 9 }},
		{"I11: the turn of \"eve\" is out of time", func(m *Machine) { m.turns.list[1].at = 11 }},
		{"I12: ticket 1 stands", func(m *Machine) { m.sessions[1].node.Away = true }},
		{"I12: ticket 1 stands", func(m *Machine) { wait(m, 1).stepAside() }},
		{"I7: fence 1 should have ended", func(m *Machine) { m.now = 111 }},
		{"I7: the deadlines are out of order", func(m *Machine) { m.deadlines.swap(0, 1) }},
		{"I7: 4 deadlines", func(m *Machine) { m.deadlines = append(m.deadlines, timer{}) }},
		{"I9: a host", func(m *Machine) { m.hosts["empty"] = &host{} }},
		{"I8: requests without", func(m *Machine) { m.asks[Ask{1, 999}] = hold(m, 1) }},
		{"I8: nodes have waits", func(m *Machine) { m.sessions[0].waits[999] = wait(m, 1) }},
		{"I8: processes without", func(m *Machine) { m.hosts["h2"].pids[999] = hold(m, 1) }},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			m := sound(t)
			tc.damage(m)
			if err := m.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}
