package check

import (
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

// freezeScript tells a history of freezes, with times of its own.
type freezeScript struct{ *script }

func tellFreezes() freezeScript {
	s := freezeScript{tell()}
	s.end.Workload = "freeze"
	s.get(1, "a", 1)
	s.put(1, "a", 1)
	return s
}

func (s freezeScript) at(ms int, op history.Op) {
	s.now = time.Duration(ms) * time.Millisecond
	s.add(op)
}

// probe is one whose answer has come at ms, and took so long.
func (s freezeScript) probe(target string, ms, took int) {
	s.at(ms, history.Op{Process: 90, Type: history.Info, F: history.Probe, Locks: []string{target}, Took: time.Duration(took) * time.Millisecond})
}

// order is one of two seconds, that was frozen after 100 ms.
func (s freezeScript) order(ms int, targets ...string) func(ms int, t history.Type, f, value, alone string) {
	note := history.Op{Process: ms, Locks: targets, Limit: 2 * time.Second}
	tell := func(ms int, t history.Type, f, value, alone string) {
		op := note
		op.Type, op.F, op.Value, op.Error = t, f, value, alone
		s.at(ms, op)
	}
	tell(ms, history.Invoke, history.Freeze, "fsfreeze", "")
	tell(ms+100, history.Info, history.Frozen, "", "")
	return tell
}

func TestFreezes(t *testing.T) {
	const still, early, stray = "nothing stays frozen", "nothing thaws early", "nothing else is frozen"
	for name, c := range map[string]struct {
		tell func(s freezeScript)
		want map[string]Verdict // of checks that do not pass
	}{
		"well": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			o(2000, history.Info, history.Thaw, "", "")
			s.probe("fs:n1", 2010, 950)
			o(2020, history.OK, history.Freeze, "thawed", "")
			s.probe("fs:n1", 2030, 5)
		}, nil},
		"well, by its deadline": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			s.probe("fs:n1", 3050, 1990)
			o(3100, history.OK, history.Freeze, "deadline", "n1 deadline")
		}, nil},
		"past its time": {func(s freezeScript) {
			s.order(1000, "fs:n1")(4000, history.OK, history.Freeze, "deadline", "")
			s.probe("fs:n1", 4200, 3050)
		}, map[string]Verdict{still: Fail}},
		"past its time, on a machine that stood still": {func(s freezeScript) {
			s.order(1000, "fs:n1")(4000, history.OK, history.Freeze, "deadline", "")
			s.probe(history.Control, 4100, 300)
			s.probe("fs:n1", 4200, 3050)
		}, nil},
		"for ever": {func(s freezeScript) {
			s.order(1000, "fs:n1")(4000, history.OK, history.Freeze, "deadline", "")
			s.at(9000, history.Op{Process: 90, Type: history.Info, F: history.Probe, Locks: []string{"fs:n1"}, Took: 6 * time.Second, Error: "no answer"})
		}, map[string]Verdict{still: Fail}},
		"after its end": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			o(1200, history.Info, history.Thaw, "", "")
			o(1220, history.OK, history.Freeze, "thawed", "")
			s.probe("fs:n1", 2500, 1400)
		}, map[string]Verdict{still: Fail}},
		"after its end, by a node that was given up": {func(s freezeScript) {
			s.end.Nemesis = true
			s.at(900, history.Op{Process: history.Nemesis, Type: history.OK, F: "pause"})
			s.order(1000, "fs:n1")(1220, history.OK, history.Freeze, "node gone", "n1 gone")
			s.probe("fs:n1", 2500, 1400)
		}, nil},
		"its requester vanished": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			o(1500, history.Info, history.Thaw, "", "")
			o(1500, history.Info, history.Freeze, "vanished", "")
			s.probe("fs:n1", 1600, 490)
		}, nil},
		"moved before it was asked to": {func(s freezeScript) {
			o := s.order(1000, "fs:n1", "fs:n2")
			s.probe("fs:n1", 1500, 5)
			o(2000, history.Info, history.Thaw, "", "")
			o(2020, history.OK, history.Freeze, "thawed", "")
		}, map[string]Verdict{early: Fail}},
		"moved before its deadline": {func(s freezeScript) {
			o := s.order(1000, "process:n1")
			s.probe("process:n1", 2900, 5)
			o(3100, history.OK, history.Freeze, "deadline", "")
		}, map[string]Verdict{early: Fail}},
		"moved before its requester vanished": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			s.probe("fs:n1", 1200, 5)
			o(1500, history.Info, history.Thaw, "", "")
			o(1500, history.Info, history.Freeze, "vanished", "")
		}, map[string]Verdict{early: Fail}},
		"ended for nothing": {func(s freezeScript) {
			s.order(1000, "fs:n1")(1500, history.OK, history.Freeze, "node away", "n1 quorum")
		}, map[string]Verdict{early: Fail}},
		"ended by nobody": {func(s freezeScript) {
			s.order(1000, "fs:n1")(1500, history.OK, history.Freeze, "thawed", "")
		}, map[string]Verdict{early: Fail}},
		"ended by a fault": {func(s freezeScript) {
			s.end.Nemesis = true
			s.at(900, history.Op{Process: history.Nemesis, Type: history.OK, F: "kill"})
			s.order(1000, "fs:n1")(1500, history.OK, history.Freeze, "node away", "n1 quorum")
			s.probe("fs:n1", 1300, 5)
		}, nil},
		"ended by its guard's death": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			s.at(1200, history.Op{Process: history.Nemesis, Type: history.Info, F: history.GuardKilled})
			s.probe("fs:n1", 1300, 5)
			o(1500, history.OK, history.Freeze, "failed", "n1 guard")
		}, nil},
		"said to have held, though a fault had thawed it": {func(s freezeScript) {
			s.end.Nemesis = true
			s.at(900, history.Op{Process: history.Nemesis, Type: history.OK, F: "kill"})
			o := s.order(1000, "fs:n1")
			s.probe("fs:n1", 1300, 5)
			o(1500, history.Info, history.Thaw, "", "")
			o(1520, history.OK, history.Freeze, "thawed", "")
		}, map[string]Verdict{early: Fail}},
		"another one": {func(s freezeScript) {
			o := s.order(1000, "fs:n1")
			s.probe("fs:n2", 2500, 1400)
			o(2700, history.Info, history.Thaw, "", "")
			o(2720, history.OK, history.Freeze, "thawed", "")
		}, map[string]Verdict{stray: Fail}},
		"though it was refused": {func(s freezeScript) {
			o := s.order(500, "fs:n2")
			o(700, history.Info, history.Thaw, "", "")
			o(720, history.OK, history.Freeze, "thawed", "")
			s.at(1000, history.Op{Process: 7, Type: history.Invoke, F: history.Freeze, Locks: []string{"fs:n1"}, Limit: 2 * time.Second})
			s.at(1010, history.Op{Process: 7, Type: history.Fail, F: history.Freeze, Locks: []string{"fs:n1"}, Limit: 2 * time.Second, Value: "refused"})
			s.probe("fs:n1", 2500, 1400)
		}, map[string]Verdict{stray: Fail}},
	} {
		s := tellFreezes()
		c.tell(s)
		s.probe("fs:n9", 9990, 1)
		s.at(9991, history.Op{Process: 9, Type: history.Invoke, F: history.Freeze, Locks: []string{"fs:n9"}, Limit: time.Second})
		s.probe("fs:n9", 9999, 1)
		for _, r := range s.results() {
			want := c.want[r.Check]
			if want == "" {
				want = Pass
			}
			if (r.Check == still || r.Check == early || r.Check == stray) && r.Verdict != want {
				t.Errorf("%s: %s: %s, want %s: %v", name, r.Check, r.Verdict, want, r.Problems)
			}
		}
	}
}
