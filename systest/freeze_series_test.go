package systest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// ending is a way in which a group freeze is broken off, and by when all must be over on
// the node that it strikes and on the others.
type ending struct {
	name string
	do   func(s *site, freeze *running) (struck *farm.Node, heal func(), err error)
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
	killed = series{"SYSTEST_FREEZES_KILLED", 2, []ending{
		{"lockctl killed", func(_ *site, f *running) (*farm.Node, func(), error) {
			return nil, func() {}, f.cmd.Process.Kill()
		}, 0, slack},
		{"node of lockctl killed", func(s *site, f *running) (*farm.Node, func(), error) {
			f.by.Kill()
			return f.by, func() { must(s.t, f.by.Start()) }, nil
		}, slack, slack},
		{"lockerd killed", func(s *site, f *running) (*farm.Node, func(), error) {
			n := f.frozenNode()
			n.Kill()
			return n, func() { must(s.t, n.Start()) }, nil
		}, slack, slack},
	}}
	cutOff = series{"SYSTEST_FREEZES_CUT", 1, []ending{
		{"node cut off", func(s *site, f *running) (*farm.Node, func(), error) {
			n := f.frozenNode()
			return n, func() { must(s.t, n.Heal()) }, n.Cut()
		}, orderGrace + slack, quietTime + slack},
	}}
	worn = series{"SYSTEST_FREEZES_WORN", 0, []ending{
		{"deadline", func(_ *site, f *running) (*farm.Node, func(), error) {
			time.Sleep(time.Until(f.began.Add(shortFreeze)))
			return nil, func() {}, nil
		}, 0, slack},
		{"lockerd stopped", func(s *site, f *running) (*farm.Node, func(), error) {
			n := f.frozenNode()
			return n, func() { must(s.t, n.Signal(syscall.SIGCONT)) }, n.Signal(syscall.SIGSTOP)
		}, guardLease + slack, quietTime + slack},
	}}
	allSeries = []series{killed, cutOff, worn}
)

// byHand is how many freezes somebody wants to see broken off: then the bounds count.
func byHand() (n int) {
	for _, r := range allSeries {
		n += number(r.env, 0)
	}
	return n
}

// usualWatch is how long volumes are looked at after a blow in a series that is not
// strict, and watchOn for how long after the bound in one that is.
const (
	usualWatch = time.Second
	watchOn    = 500*time.Millisecond + election
)

// shortFreeze is the timeout of freezes that last until then, and longFreeze that of those
// that something else has to end.
const (
	shortFreeze = 2 * time.Second
	longFreeze  = 30 * time.Second
)

// running is a lockctl that freezes, or is about to.
type running struct {
	cmd   *exec.Cmd
	by    *farm.Node
	began time.Time
	rng   *rand.Rand
	nodes []*farm.Node
}

func (f *running) frozenNode() *farm.Node { return f.nodes[f.rng.IntN(len(f.nodes))] }

// brokenOff freezes three nodes, breaks that off at a random moment, and wants everything
// to move in time. The bounds hold on a machine that is not overloaded, so they are judged
// in long series only, which are run by hand; here nothing may stay frozen.
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
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	took := map[string][]time.Duration{}
	count := map[string]int{}
	frozen, late, done := 0, 0, 0
	for round := range rounds {
		done++
		e := r.endings[round%len(r.endings)]
		must(s.t, s.farm.AwaitReady(limited(s.t, 30*time.Second)))
		lead, err := s.farm.AwaitLeader(limited(s.t, 30*time.Second))
		must(s.t, err)
		was, hit, after := s.breakOff(e, rng, strict)
		count[e.name]++
		if was {
			frozen++
		}
		for who, d := range after {
			bound := e.others
			if who == "struck" {
				bound = e.struck
			}
			if hit == lead.Name {
				bound += election
			}
			took[e.name+", "+who] = append(took[e.name+", "+who], d)
			if strict && d > bound {
				late++
				s.t.Errorf("round %d, seed %d: %s on %s (%s leads): a volume of the %s moved after %v, want %v", round, seed, e.name, hit, lead.Name, who, d, bound)
			}
		}
		if s.t.Failed() && late > 10 {
			break
		}
	}
	for _, k := range slices.Sorted(maps.Keys(took)) {
		list := took[k]
		slices.Sort(list)
		s.t.Logf("%-40s half within %v, all %d within %v", k, list[len(list)/2].Round(time.Millisecond), len(list), list[len(list)-1].Round(time.Millisecond))
	}
	s.t.Logf("%d freezes broken off (%v), %d of them when all was frozen; %d volumes late", done, count, frozen, late)
}

// breakOff is one round. It says whether everything was frozen at the blow, whom that
// struck, and how long after it the volumes moved.
func (s *site) breakOff(e ending, rng *rand.Rand, strict bool) (frozen bool, hit string, took map[string]time.Duration) {
	by := s.farm.Nodes[rng.IntN(3)]
	flag := filepath.Join(s.dir, "frozen")
	_ = os.Remove(flag)
	timeout := longFreeze
	if e.name == "deadline" {
		timeout = shortFreeze
	}
	cmd := s.command(by.Name, "fsfreeze", "--timeout", fmt.Sprint(timeout.Seconds()), "--node", all, s.data, "--", "sh", "-c", "echo >"+flag+"; exec sleep 1000")
	var said syncBuffer
	cmd.Stderr = &said
	f := &running{cmd: cmd, by: by, rng: rng, nodes: s.farm.Nodes[:3]}
	must(s.t, by.Within(cmd.Start))
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	// At random: a third strikes on the way to the freeze.
	isFrozen := func() bool { _, err := os.Stat(flag); return err == nil }
	if e.name == "deadline" || rng.IntN(3) > 0 {
		await(s.t, 40*time.Second, "the freeze", func() error {
			select {
			case <-ended:
				return nil
			default:
			}
			if !isFrozen() {
				return errors.New("not yet")
			}
			return nil
		})
		f.began = time.Now()
		if e.name != "deadline" {
			time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		}
	} else {
		time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
	}
	frozen = isFrozen()
	struck, heal, err := e.do(s, f)
	blow := time.Now()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Fatalf("%s: %v", e.name, err)
	}
	took = map[string]time.Duration{}
	watch := usualWatch
	if strict {
		watch = e.others + watchOn
	}
	type wait struct {
		who       string
		long, end time.Duration // the latter since the blow
	}
	var waits []wait
	var slow time.Duration // the longest wait where nothing was ever frozen
	var all sync.WaitGroup
	var mu sync.Mutex
	look := func(v *volume, note func(wait)) {
		all.Go(func() {
			// A single write may have come before a freeze that is still under way, so it is
			// the last one that waits which counts.
			for end := time.Now().Add(watch); ; time.Sleep(20 * time.Millisecond) {
				began := time.Now()
				_, err := v.written(2 * longFreeze)
				mu.Lock()
				note(wait{long: time.Since(began), end: time.Since(blow)})
				if err != nil {
					s.t.Errorf("%s: %v", e.name, err)
				}
				mu.Unlock()
				if err != nil || time.Now().After(end) {
					return
				}
			}
		})
	}
	hit = "nobody"
	for i, v := range s.volumes {
		who := "others"
		if s.farm.Nodes[i] == struck {
			who, hit = "struck", struck.Name
		}
		look(v, func(w wait) {
			w.who = who
			waits = append(waits, w)
		})
	}
	look(s.kept, func(w wait) { slow = max(slow, w.long) })
	all.Wait()
	for _, w := range waits {
		if w.long > looks+slow {
			took[w.who] = max(took[w.who], w.end)
		}
	}
	heal()
	if e.name != "lockctl killed" {
		select {
		case <-ended:
			if text := said.String(); !regexp.MustCompile(`thawed too early|refused|no answer`).MatchString(text) {
				s.t.Errorf("%s: lockctl says %q", e.name, text)
			}
		case <-time.After(60 * time.Second):
			s.t.Errorf("%s: lockctl does not end: %s", e.name, strings.TrimSpace(said.String()))
			_ = cmd.Process.Kill()
		}
	}
	<-ended
	return frozen, hit, took
}
