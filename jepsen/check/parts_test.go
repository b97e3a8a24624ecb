package check

import (
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

// acquire tells of an acquire as a whole, with the grant if got is not empty, and of what
// the servers say.
func (s *script) acquire(call history.Op, fence uint64, got ...string) {
	call.Type, call.F = history.Invoke, history.Acquire
	s.add(call)
	call.Type = history.Fail
	if len(got) == 0 {
		call.Error = history.Busy
		s.add(call)
		return
	}
	for _, n := range []string{"n1", "n2"} {
		s.events = append(s.events, history.Event{Time: s.now, Node: n, Kind: "granted", Locks: got, Owner: call.Owner, Fence: fence})
	}
	s.end.Fence = max(s.end.Fence, fence)
	call.Type, call.Locks, call.Fence = history.OK, got, fence
	s.add(call)
}

// What is asked for in another way than one lock for one client has a model of its own.
func TestModelsAreWired(t *testing.T) {
	two := []string{"l0", "l1"}
	slot := func(p int, owner string) history.Op {
		return history.Op{Process: p, Owner: owner, Locks: []string{"l"}, Mode: "slots", Slots: 2, Try: true}
	}
	read := func(p int, owner string) history.Op {
		return history.Op{Process: p, Owner: owner, Locks: []string{"l"}, Mode: "shared", Try: true}
	}
	oneOf := func(p int, owner string) history.Op {
		return history.Op{Process: p, Owner: owner, Locks: two, Try: true}
	}
	allOf := func(p int, owner string) history.Op {
		op := oneOf(p, owner)
		op.All = true
		return op
	}
	for name, c := range map[string]struct {
		tell func(s *script)
		want Verdict
	}{
		"slots": {func(s *script) {
			s.acquire(slot(0, "a"), 1, "l")
			s.acquire(slot(1, "b"), 2, "l")
			s.acquire(slot(2, "c"), 0)
		}, Pass},
		"a slot too many": {func(s *script) {
			s.acquire(slot(0, "a"), 1, "l")
			s.acquire(slot(1, "b"), 2, "l")
			s.acquire(slot(2, "c"), 3, "l")
		}, Fail},
		"a slot refused": {func(s *script) {
			s.acquire(slot(0, "a"), 1, "l")
			s.acquire(slot(2, "c"), 0)
		}, Fail},
		"readers": {func(s *script) {
			s.acquire(read(0, "a"), 1, "l")
			s.acquire(read(1, "b"), 2, "l")
		}, Pass},
		"a reader refused": {func(s *script) {
			s.acquire(read(0, "a"), 1, "l")
			s.acquire(read(1, "b"), 0)
		}, Fail},
		"a reader refused, while writers may wait": {func(s *script) {
			s.acquire(history.Op{Process: 2, Owner: "w", Locks: []string{"l"}, Try: true}, 1, "l")
			s.put(2, "w", 1)
			s.acquire(read(0, "a"), 2, "l")
			s.acquire(read(1, "b"), 0)
		}, Pass},
		"any of two": {func(s *script) {
			s.acquire(oneOf(0, "a"), 1, "l0")
			s.acquire(oneOf(1, "b"), 2, "l1")
			s.acquire(oneOf(2, "c"), 0)
		}, Pass},
		"any of two, and not the first": {func(s *script) {
			s.acquire(oneOf(0, "a"), 1, "l1")
		}, Fail},
		"any of two, busy at different times": {func(s *script) {
			s.acquire(oneOf(0, "a"), 1, "l0")
			s.acquire(oneOf(2, "c"), 0)
		}, Fail},
		"any of two, granted both": {func(s *script) {
			s.acquire(oneOf(0, "a"), 1, "l0", "l1")
		}, Fail},
		"all of two, granted one": {func(s *script) {
			s.acquire(allOf(0, "a"), 1, "l0")
		}, Fail},
		"all of two, busy though both are free": {func(s *script) {
			s.acquire(allOf(0, "a"), 0)
		}, Fail},
		"all of two, one of them busy": {func(s *script) {
			s.get(1, "b", 1)
			s.ops[len(s.ops)-1].Locks, s.ops[len(s.ops)-2].Locks = two[1:], two[1:]
			s.acquire(allOf(0, "a"), 0)
		}, Pass},
		"all of two, one of them kept for somebody": {func(s *script) {
			s.add(history.Op{Process: 1, Type: history.Invoke, F: history.Acquire, Owner: "b", Locks: []string{"l1", "l2"}, All: true})
			s.acquire(allOf(0, "a"), 0)
		}, Pass},
		"all of two, while somebody waits for another": {func(s *script) {
			s.add(history.Op{Process: 1, Type: history.Invoke, F: history.Acquire, Owner: "b", Locks: []string{"l2"}})
			s.acquire(allOf(0, "a"), 0)
		}, Fail},
	} {
		s := tell()
		c.tell(s)
		if v := verdictOf(t, s, Linearizable); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

// The operation that no order explains is told, so that a picture can show where it is.
func TestWhereItFails(t *testing.T) {
	s := tell()
	for f := range uint64(3) {
		s.get(0, "a", f+1)
		s.put(0, "a", f+1)
	}
	s.op(1, history.Invoke, history.Read, "l", "", 0)
	s.op(1, history.OK, history.Read, "l", "z", 0)
	for _, r := range s.results() {
		if want := len(s.ops) - 2; r.Check == Linearizable && r.First != want {
			t.Errorf("operation %d, want %d: %v", r.First, want, r.Problems)
		}
	}
}

// An end that nobody told of is excused only where everybody may have missed it.
func TestUnseenEndOfOneHold(t *testing.T) {
	begin := func(s *script, nodes ...string) {
		for _, n := range nodes {
			s.events = append(s.events, history.Event{Time: s.now, Node: n, Gap: true})
		}
	}
	for name, c := range map[string]struct {
		before, between, after []string // streams that begin anew, seen from the two holds
		want                   Verdict
	}{
		"all in between":             {nil, []string{"n1", "n2"}, nil, Pass},
		"one in between":             {nil, []string{"n1"}, nil, Fail},
		"all, but before both holds": {[]string{"n1", "n2"}, nil, nil, Fail},
		"all, but after both holds":  {nil, nil, []string{"n1", "n2"}, Fail},
		"each, and another watched":  {[]string{"n1"}, []string{"n2"}, []string{"n1"}, Fail},
	} {
		s := tell()
		s.end.Loses = true
		begin(s, "n1", "n2")
		s.get(0, "z", 1)
		s.put(0, "z", 1)
		begin(s, c.before...)
		s.get(1, "a", 2)
		begin(s, c.between...)
		s.get(2, "b", 3)
		s.put(2, "b", 3)
		begin(s, c.after...)
		s.get(3, "c", 4)
		s.put(3, "c", 4)
		if v := verdictOf(t, s, Linearizable); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

// A server that was sent a snapshot has not told of what is in it.
func TestSkippedFences(t *testing.T) {
	s := tell()
	s.end.Loses = true
	s.get(0, "a", 1)
	s.get(1, "b", 2)
	s.get(2, "c", 3)
	s.put(2, "c", 3)
	if v := verdictOf(t, s, Linearizable); v != Fail {
		t.Errorf("all was told: %s", v)
	}
	kept := s.events[:0]
	for _, e := range s.events {
		if e.Fence != 2 {
			kept = append(kept, e)
		}
	}
	s.events = kept
	if v := verdictOf(t, s, Linearizable); v != Pass {
		t.Errorf("a fence was skipped: %s", v)
	}
}

func TestOutlasting(t *testing.T) {
	fault := func(s *script, d time.Duration) {
		s.add(history.Op{Process: history.Nemesis, Type: history.Invoke, F: "kill"})
		s.now += d
		s.add(history.Op{Process: history.Nemesis, Type: history.OK, F: "kill"})
	}
	limited := func(s *script) {
		s.get(0, "a", 1)
		s.ops[0].Limit = time.Second
	}
	for name, c := range map[string]struct {
		tell func(s *script)
		want Verdict
	}{
		"in time":            {func(s *script) { limited(s); s.now += 2 * time.Second; s.event("released", "l", "a", 1, "limit") }, Pass},
		"late":               {func(s *script) { limited(s); s.now += 7 * time.Second; s.event("released", "l", "a", 1, "limit") }, Fail},
		"late, by its owner": {func(s *script) { limited(s); s.now += 7 * time.Second; s.put(0, "a", 1) }, Fail},
		"late, under a fault": {func(s *script) {
			limited(s)
			fault(s, 3*time.Second)
			s.now += 5 * time.Second
			s.event("released", "l", "a", 1, "limit")
		}, Pass},
		"late, after a fault": {func(s *script) {
			limited(s)
			fault(s, 3*time.Second)
			s.now += unrest + 10*time.Second
			s.event("released", "l", "a", 1, "limit")
		}, Fail},
		"very late, under many": {func(s *script) {
			limited(s)
			for range 20 {
				fault(s, 3*time.Second)
			}
			s.event("released", "l", "a", 1, "limit")
		}, Fail},
		"very late, under a long one": {func(s *script) {
			limited(s)
			fault(s, 90*time.Second)
			s.event("released", "l", "a", 1, "limit")
		}, Pass},
		"without a leader": {func(s *script) {
			limited(s)
			s.add(history.Op{Process: history.Nemesis, Type: history.Info, F: "leader"})
			s.now += 20 * time.Second
			s.event("released", "l", "a", 1, "limit")
		}, Pass},
		"never": {func(s *script) {
			limited(s)
			s.now += 20 * time.Second
			s.event("queued", "l", "b", 0, "")
		}, Fail},
		"never told of": {func(s *script) {
			limited(s)
			s.events = append(s.events, history.Event{Node: "n1", Gap: true}, history.Event{Node: "n2", Gap: true})
			s.now += 20 * time.Second
			s.event("queued", "l", "b", 0, "")
		}, Pass},
		"with slow clocks": {func(s *script) {
			limited(s)
			s.end.Hasten = 4
			s.now += 8 * time.Second
			s.event("released", "l", "a", 1, "limit")
		}, Pass},
		"dead": {func(s *script) {
			s.get(0, "a", 1)
			s.op(0, history.Info, history.Death, "l", "a", 0)
			s.now += 2 * time.Second
			s.event("released", "l", "a", 1, "process")
		}, Pass},
		"long dead": {func(s *script) {
			s.get(0, "a", 1)
			s.op(0, history.Info, history.Death, "l", "a", 0)
			s.now += 7 * time.Second
			s.event("released", "l", "a", 1, "process")
		}, Fail},
		"long dead, far away": {func(s *script) {
			s.get(0, "a", 1)
			s.ops[0].Proto = 1
			s.op(0, history.Info, history.Death, "l", "a", 0)
			s.now += 7 * time.Second
			s.event("released", "l", "a", 1, "process")
		}, Pass},
		"granted to the dead": {func(s *script) {
			s.op(0, history.Invoke, history.Acquire, "l", "a", 0)
			s.op(0, history.Info, history.Acquire, "l", "a", 0)
			s.op(0, history.Info, history.Death, "l", "a", 0)
			s.event("granted", "l", "a", 1, "")
			s.now += 7 * time.Second
			s.event("released", "l", "a", 1, "process")
		}, Fail},
		"silent": {func(s *script) {
			s.get(0, "a", 1)
			s.ops[0].Lease = 2 * time.Second
			s.op(0, history.Info, history.Stopped, "l", "a", 0)
			s.now += 9 * time.Second
			s.event("released", "l", "a", 1, "lease")
		}, Fail},
		"silent for a while": {func(s *script) {
			s.get(0, "a", 1)
			s.ops[0].Lease = 2 * time.Second
			s.op(0, history.Info, history.Stopped, "l", "a", 0)
			s.now += 4 * time.Second
			s.op(0, history.Info, history.Continued, "l", "a", 0)
			s.now += 9 * time.Second
			s.put(0, "a", 1)
		}, Pass},
	} {
		s := tell()
		s.end.Loses = true
		c.tell(s)
		if v := verdictOf(t, s, "nothing outlasts its end"); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

func TestGrowth(t *testing.T) {
	for name, c := range map[string]struct {
		g    Growth
		want Verdict
	}{
		"as before":           {Growth{"n1", [2]int{50, 60}, [2]int{20, 25}}, Pass},
		"many goroutines":     {Growth{"n1", [2]int{50, 150}, [2]int{20, 20}}, Fail},
		"many files":          {Growth{"n1", [2]int{50, 50}, [2]int{20, 80}}, Fail},
		"nobody has said":     {Growth{"n1", [2]int{50, 0}, [2]int{20, 0}}, Undecided},
		"fewer than at first": {Growth{"n1", [2]int{150, 50}, [2]int{80, 20}}, Pass},
	} {
		s := tell()
		s.end.Growth = []Growth{c.g}
		if v := verdictOf(t, s, "nothing piles up"); v != c.want {
			t.Errorf("%s: %s, want %s", name, v, c.want)
		}
	}
}

// A break whose outcome nobody knows, and then another one of the same hold that is told to
// have ended it: only one of them did.
func TestBrokenOnce(t *testing.T) {
	s := tell()
	s.get(0, "a", 1)
	brk := history.Op{Process: 9, Type: history.Invoke, F: history.Break, Locks: []string{"l"}, Owner: "a", Fence: 1, Value: "janitor"}
	for _, end := range []history.Type{history.Info, history.OK} {
		brk.Type = history.Invoke
		s.add(brk)
		brk.Type = end
		s.add(brk)
	}
	s.event("released", "l", "a", 1, "broken")
	s.get(1, "b", 2)
	if v := verdictOf(t, s, Linearizable); v != Pass {
		t.Errorf("%s", v)
	}
}
