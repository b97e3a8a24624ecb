package systest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// ending is a way in which a group freeze is broken off, and by when all must be over on
// the node that it strikes and on the others.
type ending struct {
	name string
	do   func(s *site, freeze *running) (struck *farm.Node, heal func(), err error)
	// kills lists who is killed. The blow is their end, which the kernel puts off on a busy
	// machine: until then they have all that they have open.
	kills func(freeze *running) (pids []int)
	// struck and others are the bounds, counted from the moment of the blow. An executor
	// that has lost the leader waits orderGrace; the others learn of it from the leader,
	// who sees at once that a process has ended.
	struck, others time.Duration
}

// series is a number of freezes that are broken off in some ways, in turn.
type series struct {
	env     string
	usual   int // rounds, without the variable
	endings []ending
}

const (
	// slack is what may pass on top of what is promised.
	slack = time.Second
	// election is what the others may take to agree on a leader when theirs was struck.
	election = time.Second
	// orderGrace is how long a node without a leader in touch stays frozen, and quiet how
	// long a leader takes a node for in touch that is silent.
	orderGrace = 2 * time.Second
	quietTime  = 4 * time.Second
)

var (
	killed = series{"SYSTEST_FREEZES_KILLED", 3, []ending{
		{"lockctl killed", func(_ *site, f *running) (*farm.Node, func(), error) {
			return nil, func() {}, f.kill()
		}, (*running).lockctls, 0, slack},
		{"node of lockctl killed", func(s *site, f *running) (*farm.Node, func(), error) {
			f.by.Kill()
			return f.by, func() { must(s.t, f.by.Start()) }, nil
		}, func(f *running) []int { return []int{f.by.PID()} }, slack, slack},
		{"lockerd killed", func(s *site, f *running) (*farm.Node, func(), error) {
			n := f.victim
			n.Kill()
			return n, func() { must(s.t, n.Start()) }, nil
		}, func(f *running) []int { return []int{f.victim.PID()} }, slack, slack},
	}}
	cutOff = series{"SYSTEST_FREEZES_CUT", 1, []ending{
		{"node cut off", func(s *site, f *running) (*farm.Node, func(), error) {
			n := f.victim
			return n, func() { must(s.t, n.Heal()) }, n.Cut()
		}, nil, orderGrace + slack, quietTime + slack},
	}}
	worn = series{"SYSTEST_FREEZES_WORN", 0, []ending{
		{"deadline", func(_ *site, f *running) (*farm.Node, func(), error) {
			time.Sleep(time.Until(f.began.Add(shortFreeze)))
			return nil, func() {}, nil
		}, nil, 0, slack},
		{"lockerd stopped", func(s *site, f *running) (*farm.Node, func(), error) {
			n := f.victim
			return n, func() { must(s.t, n.Signal(syscall.SIGCONT)) }, n.Signal(syscall.SIGSTOP)
		}, nil, guardLease + slack, quietTime + slack},
	}}
	allSeries = []series{killed, cutOff, worn}
)

// byHand is how many freezes somebody wants to see broken off: then the bounds count as
// they are promised.
func byHand() (n int) {
	for _, r := range allSeries {
		n += number(r.env, 0)
	}
	return n
}

const (
	// spare is what is allowed on top of the bounds in the few rounds of every day, which
	// may run on a machine that does much else: less than it takes a freeze to end by
	// itself.
	spare = 10 * time.Second
	// watchOn is for how long everything is looked at after it has moved, or the bound, as
	// a freeze that was under way at the blow may come later.
	watchOn = 500 * time.Millisecond
)

// shortFreeze is the timeout of freezes that last until then, and longFreeze that of those
// that something else has to end.
const (
	shortFreeze = 2 * time.Second
	longFreeze  = 30 * time.Second
)

// brokenOff freezes file systems and processes of three nodes, breaks that off at a random
// moment, and wants everything to move in time. What the machine itself was seen to stand
// still meanwhile does not count.
func (s *site) brokenOff() {
	for _, r := range allSeries {
		usual := r.usual
		if byHand() > 0 {
			usual = 0
		}
		s.breakOffs(r, number(r.env, usual), byHand() > 0)
	}
}

func (s *site) breakOffs(r series, rounds int, strict bool) {
	if rounds == 0 {
		return
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	proof := tally{took: map[string][]time.Duration{}, frozen: map[string]int{}, broken: map[string]int{}}
	for _, e := range r.endings[:min(rounds, len(r.endings))] {
		proof.kinds = append(proof.kinds, e.name)
	}
	allowed := time.Duration(0)
	if !strict {
		allowed = spare
	}
	for round := range rounds {
		e := r.endings[round%len(r.endings)]
		// Each way is tried at least once when everything stands: a third of the later ones
		// strikes on the way to the freeze.
		early := e.name != "deadline" && round >= len(r.endings) && rng.IntN(3) == 0
		o := s.attempt(e, rng, early)
		for range 4 {
			if early || o.frozen {
				break
			}
			o = s.attempt(e, rng, early) // it was over before the blow
		}
		proof.add(e, o)
		late := o.late(e, allowed)
		for _, f := range late {
			proof.late++
			s.t.Errorf("round %d, seed %d: %s on %s (%s leads): %s", round, seed, e.name, o.hit, o.lead, f)
		}
		if o.dying > longFreeze/2 {
			s.t.Errorf("round %d, seed %d: %s on %s: it had ended after %v: was it in the way of its own freeze?", round, seed, e.name, o.hit, o.dying)
		}
		if len(late) > 0 {
			s.t.Logf("the blow was at %s; where nothing was frozen a write took %v at most\n%s",
				o.at.UTC().Format(logTime), o.slow.Round(time.Millisecond), s.logsFrom(o.at.Add(-time.Second)))
		}
		if proof.late > 10 {
			break
		}
	}
	for _, k := range slices.Sorted(maps.Keys(proof.took)) {
		list := proof.took[k]
		slices.Sort(list)
		s.t.Logf("%-50s half within %v, all %d within %v", k, list[len(list)/2].Round(time.Millisecond), len(list), list[len(list)-1].Round(time.Millisecond))
	}
	s.t.Logf("%d freezes broken off (%v), of them when all was frozen: %v; %d late; the machine stood still for %v at most, and who was killed had ended after %v at most",
		proof.done, proof.broken, proof.frozen, proof.late, proof.stall.Round(time.Millisecond), proof.dying.Round(time.Millisecond))
	if err := proof.err(); err != nil {
		s.t.Error(err)
	}
}

// outcome is what came of one freeze.
type outcome struct {
	frozen    bool // everything was, at the blow
	hit, lead string
	moved     []moved
	at        time.Time     // of the blow
	dying     time.Duration // from the signal to the blow, if that is somebody's end
	stall     time.Duration // of the machine
	slow      time.Duration // the longest write where nothing was ever frozen
}

// moved is when something went on, counted from the blow.
type moved struct {
	what   string // file system or process
	struck bool   // on the node that was hit
	after  time.Duration
}

func (m moved) who() string {
	if m.struck {
		return m.what + " there"
	}
	return m.what + " elsewhere"
}

// late lists what took longer than it may.
func (o outcome) late(e ending, allowed time.Duration) (list []string) {
	for _, m := range o.moved {
		bound := e.others
		if m.struck {
			bound = e.struck
		}
		if o.hit == o.lead {
			bound += election
		}
		if m.after > bound+allowed+o.stall {
			list = append(list, fmt.Sprintf("a %s moved after %v, want %v, with %v for the machine's own stalls", m.who(), m.after, bound+allowed, o.stall))
		}
	}
	return list
}

// tally sums up a series.
type tally struct {
	kinds          []string
	took           map[string][]time.Duration
	broken, frozen map[string]int // by kind
	done, late     int
	stall, dying   time.Duration
}

func (p *tally) add(e ending, o outcome) {
	p.done++
	p.broken[e.name]++
	if o.frozen {
		p.frozen[e.name]++
	}
	p.stall, p.dying = max(p.stall, o.stall), max(p.dying, o.dying)
	for _, m := range o.moved {
		p.took[e.name+", "+m.who()] = append(p.took[e.name+", "+m.who()], m.after)
	}
}

// err says what a series has not shown: no ending counts that was not seen to end
// anything, of file systems as well as of processes.
func (p *tally) err() error {
	for _, kind := range p.kinds {
		if p.frozen[kind] == 0 {
			return fmt.Errorf("%s: nothing was ever frozen then: that proves nothing", kind)
		}
		for _, what := range []string{"file system", "process"} {
			if len(p.took[kind+", "+what+" there"])+len(p.took[kind+", "+what+" elsewhere"]) == 0 {
				return fmt.Errorf("%s: no %s was ever seen to move after it: that proves nothing", kind, what)
			}
		}
	}
	return nil
}

// What a series must not pass for.
func TestTally(t *testing.T) {
	e := ending{name: "blow", struck: time.Second, others: time.Second}
	whole := []moved{{"file system", true, 0}, {"process", false, time.Second}}
	for name, c := range map[string]struct {
		outcomes []outcome
		late     int
		want     string
	}{
		"good":         {[]outcome{{frozen: true, hit: "n1", lead: "n2", moved: whole}}, 0, ""},
		"never_frozen": {[]outcome{{moved: whole}}, 0, "blow: nothing was ever frozen then: that proves nothing"},
		"no_process":   {[]outcome{{frozen: true, moved: whole[:1]}}, 0, "blow: no process was ever seen to move after it: that proves nothing"},
		"no_volume":    {[]outcome{{frozen: true, moved: whole[1:]}}, 0, "blow: no file system was ever seen to move after it: that proves nothing"},
		"not_once":     {nil, 0, "blow: nothing was ever frozen then: that proves nothing"},
		"late":         {[]outcome{{frozen: true, hit: "n1", lead: "n2", moved: append(whole, moved{"process", false, 1501 * time.Millisecond}), stall: 500 * time.Millisecond}}, 1, ""},
		"stalled":      {[]outcome{{frozen: true, hit: "n1", lead: "n2", moved: append(whole, moved{"process", false, 1499 * time.Millisecond}), stall: 500 * time.Millisecond}}, 0, ""},
		"elected":      {[]outcome{{frozen: true, hit: "n1", lead: "n1", moved: append(whole, moved{"process", false, 1999 * time.Millisecond})}}, 0, ""},
	} {
		p := tally{kinds: []string{"blow"}, took: map[string][]time.Duration{}, frozen: map[string]int{}, broken: map[string]int{}}
		late := 0
		for _, o := range c.outcomes {
			p.add(e, o)
			late += len(o.late(e, 0))
		}
		got := ""
		if err := p.err(); err != nil {
			got = err.Error()
		}
		if got != c.want || late != c.late {
			t.Errorf("%s: %q and %d late, want %q and %d", name, got, late, c.want, c.late)
		}
	}
}
