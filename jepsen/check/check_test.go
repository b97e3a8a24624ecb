package check

import (
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

// script tells a history, a step a millisecond.
type script struct {
	ops    []history.Op
	events []history.Event
	end    End
	now    time.Duration
}

func tell() *script {
	return &script{end: End{
		Workload: "mutex", Agree: true, Recover: time.Millisecond,
		Digests: []Digest{{"n1", 9, "aa"}, {"n2", 9, "aa"}},
	}}
}

func (s *script) add(op history.Op) {
	s.now += time.Millisecond
	op.Time, op.Index = s.now, len(s.ops)
	s.ops = append(s.ops, op)
}

func (s *script) op(process int, t history.Type, f, lock, owner string, fence uint64) {
	s.add(history.Op{Process: process, Type: t, F: f, Locks: []string{lock}, Owner: owner, Fence: fence})
}

// event tells of something on both nodes.
func (s *script) event(kind, lock, owner string, fence uint64, cause string) {
	s.now += time.Millisecond
	for _, n := range []string{"n1", "n2"} {
		s.events = append(s.events, history.Event{Time: s.now, Node: n, Kind: kind, Locks: []string{lock}, Owner: owner, Fence: fence, Mode: "exclusive", Cause: cause})
	}
	s.end.Fence = max(s.end.Fence, fence)
}

func (s *script) get(process int, owner string, fence uint64) {
	s.op(process, history.Invoke, history.Acquire, "l", owner, 0)
	s.event("granted", "l", owner, fence, "")
	s.op(process, history.OK, history.Acquire, "l", owner, fence)
}

func (s *script) put(process int, owner string, fence uint64) {
	s.op(process, history.Invoke, history.Release, "l", owner, fence)
	s.event("released", "l", owner, fence, "owner")
	s.op(process, history.OK, history.Release, "l", owner, fence)
}

func (s *script) results() []Result {
	return All(Input{Ops: s.ops, Events: s.events, End: s.end})
}

func TestGoodHistoryPasses(t *testing.T) {
	s := tell()
	for f := uint64(1); f < 20; f++ {
		s.get(int(f%3), "u", f)
		s.put(int(f%3), "u", f)
	}
	for _, r := range s.results() {
		if r.Verdict != Pass {
			t.Errorf("%s: %s %v", r.Check, r.Verdict, r.Problems)
		}
	}
}

// What a client was not told is learnt from the servers, and only from them all.
func TestUnknownAcquire(t *testing.T) {
	s := tell()
	s.op(0, history.Invoke, history.Acquire, "l", "a", 0)
	s.event("granted", "l", "a", 1, "")
	s.op(0, history.Info, history.Acquire, "l", "a", 0)
	s.op(1, history.Invoke, history.Acquire, "l", "b", 0)
	s.op(1, history.OK, history.Acquire, "l", "b", 2) // while a has it, as the servers say
	s.event("granted", "l", "b", 2, "")
	if v := verdictOf(t, s, "linearizable (porcupine)"); v != Fail {
		t.Errorf("a grant over a hold that only servers know: %s", v)
	}
	s.events = nil // then nobody knows whether a ever got it
	if v := verdictOf(t, s, "linearizable (porcupine)"); v != Pass {
		t.Errorf("an unknown acquire that may never have happened: %s", v)
	}
}

func verdictOf(t *testing.T, s *script, check string) Verdict {
	t.Helper()
	for _, r := range s.results() {
		if r.Check == check {
			return r.Verdict
		}
	}
	t.Fatalf("no check is called %q", check)
	return ""
}

// TestUnseenEnd has a lease end while no stream is heard: that excuses the next grant.
// One stream that was heard all the time would have told, and where nothing ends a hold
// but its owner there is nothing to miss.
func TestUnseenEnd(t *testing.T) {
	tests := []struct {
		name  string
		loses bool
		gaps  []string
		want  Verdict
	}{
		{"nobody listened", true, []string{"n1", "n2"}, Pass},
		{"n1 was heard", true, []string{"n2"}, Fail},
		{"holds do not end by themselves", false, []string{"n1", "n2"}, Fail},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tell()
			s.end.Loses = tt.loses
			begin := func(nodes ...string) {
				for _, n := range nodes {
					s.events = append(s.events, history.Event{Time: s.now, Node: n, Gap: true})
				}
			}
			begin("n1", "n2")
			s.get(1, "a", 1)
			begin(tt.gaps...)
			s.get(2, "b", 2)
			s.put(2, "b", 2)
			for _, r := range s.results() {
				if r.Check == Linearizable && r.Verdict != tt.want {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// TestEndedByNobody: where holds may end by themselves, not each end is excused.
func TestEndedByNobody(t *testing.T) {
	for _, cause := range []string{"broken", "owner"} {
		s := tell()
		s.end.Loses = true
		s.get(0, "a", 1)
		s.event("released", "l", "a", 1, cause)
		if v := verdictOf(t, s, "no hold is lost"); v != Fail {
			t.Errorf("%s by nobody: %s", cause, v)
		}
	}
}

func TestUndecidedIsNoPass(t *testing.T) {
	if v := Overall([]Result{{Verdict: Pass}, {Verdict: Undecided}}); v != Undecided {
		t.Errorf("got %s", v)
	}
	if v := Overall([]Result{{Verdict: Undecided}, {Verdict: Fail}}); v != Fail {
		t.Errorf("got %s", v)
	}
	s := tell()
	s.end.Agree = false
	if v := verdictOf(t, s, "replicas agree"); v != Undecided {
		t.Errorf("digests that were never comparable: %s", v)
	}
}

// A run in which nothing happened proves nothing.
func TestNothingIsNoPass(t *testing.T) {
	s := tell()
	if v := Overall(s.results()); v == Pass {
		t.Errorf("an empty history: %s", v)
	}
	s.get(0, "a", 1)
	if v := Overall(s.results()); v != Pass {
		t.Errorf("one grant: %s", v)
	}
	s.end.Nemesis = true
	if v := Overall(s.results()); v != Undecided {
		t.Errorf("no fault where there were to be some: %s", v)
	}
}

// Holds that may end by a limit, a break or a death are certain until then only.
func TestCertainHolds(t *testing.T) {
	for name, c := range map[string]struct {
		ends func(s *script)
		want Verdict
	}{
		"not ended":      {func(*script) {}, Fail},
		"limit over":     {func(s *script) { s.ops[0].Limit = 3 * time.Millisecond }, Pass},
		"limit to come":  {func(s *script) { s.ops[0].Limit = time.Second }, Fail},
		"limit hastened": {func(s *script) { s.ops[0].Limit, s.end.Hasten = 8*time.Millisecond, 4 }, Pass},
		"broken":         {func(s *script) { s.op(5, history.Invoke, history.Break, "l", "", 0) }, Pass},
		"another broken": {func(s *script) { s.op(5, history.Invoke, history.Break, "other", "", 0) }, Fail},
		"process died":   {func(s *script) { s.op(0, history.Info, history.Death, "l", "a", 0) }, Pass},
	} {
		s := tell()
		s.end.Loses = true
		s.get(0, "a", 1)
		s.now += 10 * time.Millisecond
		c.ends(s)
		s.get(1, "b", 2)
		if v := verdictOf(t, s, "holds exclude each other"); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

// A place may be passed from the event that its node is out of touch to the one that it
// is back, and at no other time.
func TestPassingOver(t *testing.T) {
	events := func(list ...history.Event) func(*script) {
		return func(s *script) {
			for i := range list {
				list[i].Node, list[i].Mode, list[i].Locks = "n1", "exclusive", []string{"l"}
			}
			s.events = append(s.events, list...)
		}
	}
	queued := func(ticket uint64) history.Event { return history.Event{Kind: "queued", Ticket: ticket} }
	granted := func(ticket, fence uint64) history.Event {
		return history.Event{Kind: "granted", Ticket: ticket, Fence: fence}
	}
	away, back := history.Event{Kind: "away", Ticket: 1}, history.Event{Kind: "back", Ticket: 1}
	for name, c := range map[string]struct {
		tell func(*script)
		want Verdict
	}{
		"away":            {events(queued(1), queued(2), away, granted(2, 1), back, granted(1, 2)), Pass},
		"by a newcomer":   {events(queued(1), queued(2), away, granted(2, 1), granted(0, 2), back, granted(1, 3)), Pass},
		"back":            {events(queued(1), queued(2), away, back, granted(2, 1)), Fail},
		"away, but later": {events(queued(1), queued(2), granted(2, 1), away), Fail},
		"back for good":   {events(queued(1), queued(2), queued(3), away, granted(2, 1), back, granted(3, 2)), Fail},
		"another is away": {events(queued(1), queued(2), queued(3), away, granted(3, 1)), Fail},
	} {
		s := tell()
		c.tell(s)
		if v := verdictOf(t, s, "first come, first served"); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

// Who has been passed while its node was out of touch has not waited in vain for that.
func TestInVainOrAway(t *testing.T) {
	for name, c := range map[string]struct {
		away, back int // before which of the grants; -1 is never, -2 that it is in line after all
		want       Verdict
	}{
		"not away":       {-1, -1, Fail},
		"not in line":    {-2, -1, Pass},
		"away":           {0, 30, Pass},
		"for some":       {0, 5, Fail},
		"for most":       {0, 25, Pass},
		"not told of it": {0, -1, Fail},
	} {
		s := tell()
		s.op(9, history.Invoke, history.Acquire, "l", "z", 0)
		for i := range 31 {
			if i == c.away {
				s.event("away", "l", "z", 0, "")
			}
			if i == c.back {
				s.event("back", "l", "z", 0, "")
			}
			if i < 30 {
				s.get(1, "a", uint64(i+1))
				s.put(1, "a", uint64(i+1))
			}
		}
		if c.away == -2 {
			s.op(9, history.Info, history.Queued, "l", "z", 0)
		}
		s.now += time.Minute
		s.op(9, history.Info, history.Acquire, "l", "z", 0)
		if v := verdictOf(t, s, "nobody waits in vain"); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

// Waits that end with the lock may have been too long as well, and so may those that have
// no end, and those for any of several locks.
func TestWaitsThatEndWell(t *testing.T) {
	for name, c := range map[string]struct {
		call  history.Op
		ends  func(s *script)
		later int // how many who came later are served
		want  Verdict
	}{
		"granted at last": {history.Op{}, func(s *script) {
			s.event("granted", "l", "z", 99, "")
			s.op(9, history.OK, history.Acquire, "l", "z", 99)
		}, 30, Fail},
		"granted, after few others": {history.Op{}, func(s *script) {
			s.event("granted", "l", "z", 99, "")
			s.op(9, history.OK, history.Acquire, "l", "z", 99)
		}, 10, Pass},
		"granted before the others": {history.Op{}, func(s *script) {
			s.op(9, history.OK, history.Acquire, "l", "z", 1)
		}, 30, Pass},
		"not ended":      {history.Op{}, func(s *script) { s.event("queued", "x", "y", 0, ""); s.op(8, history.Invoke, history.Read, "x", "", 0) }, 30, Fail},
		"any of two":     {history.Op{Locks: []string{"k", "l"}}, func(s *script) { s.op(9, history.Info, history.Acquire, "l", "z", 0) }, 30, Fail},
		"all of two":     {history.Op{Locks: []string{"k", "l"}, All: true}, func(s *script) { s.op(9, history.Info, history.Acquire, "l", "z", 0) }, 30, Pass},
		"would not wait": {history.Op{Try: true}, func(s *script) { s.op(9, history.Info, history.Acquire, "l", "z", 0) }, 30, Pass},
	} {
		s := tell()
		call := c.call
		call.Process, call.Type, call.F, call.Owner = 9, history.Invoke, history.Acquire, "z"
		if call.Locks == nil {
			call.Locks = []string{"l"}
		}
		s.add(call)
		for f := range c.later {
			s.get(1, "a", uint64(f+2))
			s.put(1, "a", uint64(f+2))
		}
		s.now += time.Minute
		c.ends(s)
		if v := verdictOf(t, s, "nobody waits in vain"); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}
