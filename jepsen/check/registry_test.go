package check

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/overlay"
)

// forged are histories that are wrong in one way each: what the check of that name is
// there for.
var forged = map[string]func(s *script){
	"fences are unique": func(s *script) {
		s.get(0, "a", 1)
		s.put(0, "a", 1)
		s.get(1, "b", 1)
	},
	"fences grow": func(s *script) {
		s.get(0, "a", 2)
		s.put(0, "a", 2)
		s.get(1, "b", 1)
	},
	"what was released is over": func(s *script) {
		s.get(0, "a", 1)
		s.put(0, "a", 1)
		s.put(0, "a", 1)
	},
	"holds exclude each other": func(s *script) {
		s.get(0, "a", 1)
		s.get(1, "b", 2)
		s.put(0, "a", 1)
	},
	"no hold is lost": func(s *script) {
		s.get(0, "a", 1)
		s.event("released", "l", "a", 1, "process")
	},
	"servers tell one story": func(s *script) {
		s.get(0, "a", 1)
		s.events[1].Owner = "b"
	},
	"what was told was done": func(s *script) {
		s.get(0, "a", 1)
		s.put(0, "a", 1)
		s.op(0, history.Invoke, history.Acquire, "l", "a", 0)
		s.op(0, history.OK, history.Acquire, "l", "a", 9)
	},
	"first come, first served": func(s *script) {
		for _, ticket := range []uint64{1, 2} {
			s.events = append(s.events, history.Event{Node: "n1", Kind: "queued", Locks: []string{"l"}, Mode: "exclusive", Ticket: ticket})
		}
		s.events = append(s.events, history.Event{Node: "n1", Kind: "granted", Locks: []string{"l"}, Mode: "exclusive", Ticket: 2, Fence: 1})
	},
	"replicas agree":         func(s *script) { s.end.Digests[1].Digest = "bb" },
	"nothing is left behind": func(s *script) { s.end.Kept = []string{"a holds l"} },
	"it recovers":            func(s *script) { s.end.Recover = 0 },
	"nobody waits in vain": func(s *script) {
		s.op(9, history.Invoke, history.Acquire, "l", "z", 0)
		for f := range uint64(30) {
			s.get(1, "a", f+1)
			s.put(1, "a", f+1)
		}
		s.now += time.Minute
		s.op(9, history.Info, history.Acquire, "l", "z", 0)
	},
	"nobody is refused": func(s *script) {
		s.op(1, history.Invoke, history.Acquire, "l", "a", 0)
		s.add(history.Op{Process: 1, Type: history.Fail, F: history.Acquire, Locks: []string{"l"}, Owner: "a", Error: "the disk is full"})
	},
	"no server breaks down": func(s *script) { s.end.Logs = []string{"panic: oh"} },
	"linearizable (porcupine)": func(s *script) {
		s.get(0, "a", 1)
		s.add(history.Op{Process: 1, Type: history.Invoke, F: history.Read, Locks: []string{"l"}})
		s.add(history.Op{Process: 1, Type: history.OK, F: history.Read, Locks: []string{"l"}, Owner: ""})
		s.put(0, "a", 1)
	},
	"no element is lost": func(s *script) {
		s.end.Workload = "set"
		s.add(history.Op{Process: 1, Type: history.Invoke, F: history.Write, Value: "1"})
		s.add(history.Op{Process: 1, Type: history.OK, F: history.Write, Value: "1"})
	},
	"nothing piles up": func(s *script) {
		s.end.Growth = []Growth{{Node: "n1", Goroutines: [2]int{30, 530}, Files: [2]int{20, 20}}}
	},
	"nothing outlasts its end": func(s *script) {
		s.end.Loses = true
		s.get(0, "a", 1)
		s.ops[0].Limit = time.Second
		s.now += time.Minute
		s.event("released", "l", "a", 1, "limit")
	},
	"nothing stays frozen": func(s *script) {
		forgedFreeze(s, 500)
		probed(s, "fs:n1", 2*time.Second)
	},
	"nothing thaws early": func(s *script) {
		frozen := forgedFreeze(s, 5000)
		probed(s, "fs:n1", time.Microsecond)
		frozen(history.OK, history.Freeze, "thawed")
	},
	"nothing else is frozen": func(s *script) {
		forgedFreeze(s, 5000)
		probed(s, "fs:n2", 2*time.Second)
	},
	"faults were injected": func(s *script) { s.end.Nemesis = true },
	"the workload did what it is for": func(s *script) {
		s.end.Workload = "timeout"
		s.get(0, "a", 1)
	},
}

// forgedFreeze freezes a file system for so many milliseconds. The function returned
// tells more of it.
func forgedFreeze(s *script, ms int) func(t history.Type, f, value string) {
	s.end.Workload = "freeze"
	note := history.Op{Process: 5, Locks: []string{"fs:n1"}, Limit: time.Duration(ms) * time.Millisecond}
	tell := func(t history.Type, f, value string) {
		op := note
		op.Type, op.F, op.Value = t, f, value
		s.add(op)
	}
	tell(history.Invoke, history.Freeze, "fsfreeze")
	tell(history.Info, history.Frozen, "")
	return tell
}

// probed tells of something that stood still for a time.
func probed(s *script, target string, still time.Duration) {
	s.now += still
	s.add(history.Op{Process: 6, Type: history.Info, F: history.Probe, Locks: []string{target}, Took: still})
}

// blind are checks of the harness itself: they say that nothing was tried.
var blind = []string{"faults were injected", "the workload did what it is for"}

// Each check fails for what it is there for, and so does a server with that fault.
func TestEachCheckBites(t *testing.T) {
	mutants := map[string]bool{}
	for _, m := range overlay.Mutants {
		if !Known(m.Check) {
			t.Errorf("mutant %s is for a check that does not exist: %q", m.Name, m.Check)
		}
		mutants[m.Check] = true
	}
	for name := range maps.Keys(forged) {
		if !Known(name) {
			t.Errorf("no check is called %q", name)
		}
	}
	for _, c := range Checks {
		bad, want := forged[c.Name], Fail
		if bad == nil {
			t.Errorf("%s: no history shows that it can fail", c.Name)
			continue
		}
		if slices.Contains(blind, c.Name) {
			want = Undecided
		} else if !mutants[c.Name] {
			t.Errorf("%s: no mutant is for it", c.Name)
		}
		s := tell()
		bad(s)
		if v := verdictOf(t, s, c.Name); v != want {
			t.Errorf("%s: %s, want %s", c.Name, v, want)
		}
	}
}
