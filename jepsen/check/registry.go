package check

import (
	"slices"

	"github.com/lockerd/lockerd/jepsen/history"
)

// Check is one way to judge a run.
type Check struct {
	Name string
	// must says that a run in which it saw nothing is undecided.
	must  bool
	fits  func(s *seen) bool // nil: every run
	judge func(s *seen) Result
}

// seen is a run as the checks see it.
type seen struct {
	Input
	pairs []history.Pair
	audit *audit
}

func see(in Input) *seen {
	a := newAudit(in.Events, in.End.Fence)
	return &seen{Input: in, pairs: fenced(history.Pairs(in.Ops), a), audit: a}
}

// Linearizable is the name of the check by porcupine.
const Linearizable = "linearizable (porcupine)"

// Checks are all there are.
var Checks = []Check{
	{Name: "fences are unique", must: true, judge: func(s *seen) Result { return fences(s.pairs) }},
	{Name: "servers tell one story", must: true, judge: func(s *seen) Result { return streams(s.Events, s.audit) }},
	{Name: "faults were injected", must: true, judge: func(s *seen) Result { return faults(s.Input) }},
	{Name: "fences grow", judge: func(s *seen) Result { return order(s.pairs) }},
	{Name: "what was released is over", judge: func(s *seen) Result { return reuse(s.pairs) }},
	{Name: "holds exclude each other", judge: func(s *seen) Result { return exclusion(s.Input, s.pairs) }},
	{Name: "no hold is lost", judge: func(s *seen) Result { return losses(s.Input, s.pairs, s.audit) }},
	{Name: "what was told was done", judge: func(s *seen) Result { return acknowledged(s.pairs, s.audit) }},
	{Name: "first come, first served", judge: func(s *seen) Result { return queue(s.Input, s.audit) }},
	{Name: "replicas agree", judge: func(s *seen) Result { return digests(s.End) }},
	{Name: "nothing is left behind", judge: func(s *seen) Result { return leftovers(s.End) }},
	{Name: "it recovers", judge: func(s *seen) Result { return recovery(s.Input, s.pairs) }},
	{Name: "nobody waits in vain", judge: func(s *seen) Result { return starved(s.Ops, s.pairs, s.audit) }},
	{Name: "nobody is refused", judge: func(s *seen) Result { return refusals(s.Input, s.pairs) }},
	{Name: "no server breaks down", judge: func(s *seen) Result { return processes(s.End) }},
	{Name: "nothing piles up", fits: func(s *seen) bool { return len(s.End.Growth) > 0 }, judge: func(s *seen) Result { return growth(s.End) }},
	{Name: "nothing outlasts its end", fits: func(s *seen) bool { return s.End.Loses }, judge: func(s *seen) Result { return outlasting(s) }},
	{Name: "the workload did what it is for", must: true, fits: func(s *seen) bool { return purpose(s.End.Workload) != nil }, judge: func(s *seen) Result { return work(s.Input) }},
	{Name: "no element is lost", fits: func(s *seen) bool { return s.End.Workload == "set" || s.End.Workload == "fenced" }, judge: func(s *seen) Result { return set(s.Input, s.pairs) }},
	{Name: "nothing stays frozen", must: true, fits: freezing, judge: func(s *seen) Result { return readFreezes(s).late() }},
	{Name: "nothing thaws early", must: true, fits: freezing, judge: func(s *seen) Result { return readFreezes(s).early() }},
	{Name: "nothing else is frozen", must: true, fits: freezing, judge: func(s *seen) Result { return readFreezes(s).stray() }},
	{Name: Linearizable, judge: func(s *seen) Result { return linearizable(s.Input, s.pairs, s.audit) }},
}

// Known says whether a check has that name.
func Known(name string) bool {
	return slices.ContainsFunc(Checks, func(c Check) bool { return c.Name == name })
}

// All runs every check that makes sense for the workload.
func All(in Input) []Result {
	s := see(in)
	var results []Result
	for _, c := range Checks {
		if c.fits != nil && !c.fits(s) {
			continue
		}
		r := c.judge(s)
		r.Check = c.Name
		if c.must && r.Looked == 0 && r.Verdict == Pass {
			r.Verdict, r.Problems = Undecided, []string{"there was nothing to look at"}
		}
		results = append(results, r)
	}
	return results
}
