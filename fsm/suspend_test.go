package fsm

import (
	"strings"
	"testing"
)

func fullSuspended() Event {
	e := fullEvent()
	e.Kind, e.Cause, e.Context = EventSuspended, CauseNone, "/var/jobs/a b.ckpt"
	return e
}

// suspended is a table with one hold that is suspended, one that was resumed, and one
// like any other.
func suspended(t testing.TB) *Machine {
	t.Helper()
	m := New() // ann's has not ended yet, bob's was resumed for good, and flo's a moment ago
	auto := Process{Host: "h", PID: 1}
	for i, c := range []Command{
		NodeJoin{Name: "n1", Nonce: [16]byte{1}},
		Acquire{Owner: "ann", Locks: []string{"a", "b"}, Choice: All, Lease: 300, Process: auto, Autounlock: true}, // fence 1
		Acquire{Owner: "bob", Locks: []string{"c"}, Limit: 200, Process: auto, Autounlock: true},                   // fence 2
		Acquire{Owner: "cat", Locks: []string{"d"}},                                                                // fence 3
		Acquire{Owner: "dan", Locks: []string{"a"}, Block: true},
		Suspend{Fence: 1, By: "root@h", Context: "/c/1", ContextID: "1"},
		Suspend{Fence: 2, By: "root@h", Ended: true},
		Resume{Fence: 2, By: "root@g", Owner: "eve", Limit: 50, Process: Process{Host: "g", PID: 9}, Autounlock: true}, // fence 4
		Renew{Owner: "eve", Fence: 4},
		Acquire{Owner: "flo", Locks: []string{"f"}}, // fence 5
		Suspend{Fence: 5, By: "root@h", Context: "/c/5", ContextID: "5", Ended: true},
		Resume{Fence: 5, ContextID: "5", By: "root@g", Owner: "gus", Process: Process{Host: "g", PID: 10}, Autounlock: true}, // fence 6
	} {
		p := Proposal{Command: c}
		if i > 0 {
			p.Ask = Ask{1, uint64(i)}
		}
		m.Apply(Entry{Now: 10, Proposals: []Proposal{p}})
	}
	mustCheck(t, m)
	if c := m.Counts(); c.Holds != 4 || c.Fence != 6 {
		t.Fatalf("the table has %+v", c)
	}
	return m
}

func TestCheckFindsSuspended(t *testing.T) {
	for want, edit := range map[string]func(*Hold){
		"bound to a holder":             func(h *Hold) { h.Lease = 5 },
		"fence 1 is suspended, and":     func(h *Hold) { h.Attached = true },
		"I18: fence 1 is suspended in ": func(h *Hold) { h.Suspended = &Suspension{By: "x", At: 11, Job: 1} },
		"I18: fence 1: who suspends":    func(h *Hold) { h.Suspended = &Suspension{Job: 1} },
		"has control":                   func(h *Hold) { h.Suspended = &Suspension{By: "x", Context: "\n", Job: 1} },
		"context id is 65 bytes": func(h *Hold) {
			h.Suspended = &Suspension{By: "x", ContextID: strings.Repeat("x", MaxContextID+1), Job: 1}
		},
		"for a job of fence 0":     func(h *Hold) { h.Suspended = &Suspension{By: "x"} },
		"for a job of fence 2":     func(h *Hold) { h.Suspended = &Suspension{By: "x", Job: 2} },
		"is suspended and resumed": func(h *Hold) { h.Resumed = h.Suspended },
		"before its job had ended": func(h *Hold) { h.Suspended, h.Resumed = nil, h.Suspended },
	} {
		m := suspended(t)
		c := m.holds.byKey[1]
		h := *c.hold
		edit(&h)
		c.hold = &h
		m.holds.set(c.row, &h)
		if err := m.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
