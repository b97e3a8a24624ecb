package systest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/systest/farm"
)

const (
	// stopTimeEnv is how long a holder is stopped, if not stopTime.
	stopTimeEnv = "LOCKERD_STOP_TIME"
	stopTime    = 15 * time.Second

	// cutTime is longer than anything that a node is given to come back.
	cutTime = 20 * time.Second
	// lookEvery is the pause of a client that asks again and again.
	lookEvery = 20 * time.Millisecond
)

// A process that is stopped is not dead, for however long.
func TestAStoppedHolderKeepsItsLock(t *testing.T) {
	t.Parallel()
	long := stopTime
	if s := os.Getenv(stopTimeEnv); s != "" {
		var err error
		long, err = time.ParseDuration(s)
		must(t, err)
	}
	f := start(t, farm.Options{Servers: 3})
	sh := startLockersh(t, f.Nodes[0], "one", "cat")
	owner, pid := sh.awaitLock(t, f.Nodes[0], "one")
	waiter := queued(t, f.Nodes[1].Client(), "next", "one", owner)
	// lockersh and its command: one of them is the holder.
	must(t, sh.Process.Signal(syscall.SIGSTOP))
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	over, tick := time.After(long), time.NewTicker(lookEvery)
	defer tick.Stop()
	tries := 0
	for stopped := true; stopped; tries++ {
		select {
		case <-over:
			stopped = false
		case <-tick.C:
		}
		heldBy(t, f.Nodes[tries%3].Client(), "one", owner)
	}
	t.Logf("stopped for %v, refused to others %d times", long, tries)
	waiter.silent(t, "next")
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	must(t, sh.Process.Signal(syscall.SIGCONT))
	heldBy(t, f.Nodes[2].Client(), "one", owner)
	sh.finish(t)
	must(t, waiter.grant("next", granted))
}

// Hosts are cut off the network, with processes that hold locks: the leader's, a
// follower's and an agent's. Nobody can know whether those processes live: their
// locks stay, until the hosts are back and say who has died.
func TestCutHostsKeepTheirLocks(t *testing.T) {
	t.Parallel()
	if !inside(t, syscall.CLONE_NEWNET) {
		return
	}
	f := start(t, farm.Options{Servers: 5, Agents: 1, Hosts: true})
	lead, agent := leader(t, f), f.Nodes[5]
	servers := slices.DeleteFunc(f.Followers(lead), func(n *farm.Node) bool { return n == agent })
	others := servers[1:]
	var cuts []*stranded
	for _, n := range []*farm.Node{lead, servers[0], agent} {
		cuts = append(cuts, strand(t, n))
	}
	for _, c := range cuts {
		must(t, c.node.Cut())
	}
	for _, c := range cuts {
		c.await(t, others[0])
		c.dying.kill()
	}
	over, tick := time.After(cutTime), time.NewTicker(lookEvery)
	defer tick.Stop()
	for i, isCut := 0, true; isCut; i++ {
		select {
		case <-over:
			isCut = false
		case <-tick.C:
		}
		for _, c := range cuts {
			heldBy(t, others[i%3].Client(), c.name("living"), c.name("living"))
			heldBy(t, others[i%3].Client(), c.name("dying"), c.name("dying"))
			heldBy(t, others[i%3].Client(), c.name("command"), c.owner)
		}
	}
	for _, c := range cuts {
		for of, w := range c.waiters {
			w.silent(t, "the waiter for "+c.name(of))
		}
	}

	for _, c := range cuts {
		must(t, c.node.Heal())
	}
	for _, c := range cuts {
		must(t, c.waiters["dying"].grant("next", granted))
	}
	ready(t, f)
	for _, c := range cuts {
		heldBy(t, c.node.Client(), c.name("living"), c.name("living"))
		heldBy(t, c.node.Client(), c.name("command"), c.owner)
		c.waiters["living"].silent(t, "the waiter for "+c.name("living"))
		c.waiters["command"].silent(t, "the waiter for "+c.name("command"))
		c.command.finish(t)
		must(t, c.waiters["command"].grant("next", granted))
		c.living.kill()
		must(t, c.waiters["living"].grant("next", granted))
	}
}

// stranded are the holders on a host that is cut off. What each holds is named for
// it and the node, as its owner is, but for the lockersh.
type stranded struct {
	node          *farm.Node
	living, dying *process
	command       *command
	owner         string // as the lockersh calls itself
	waiters       map[string]*wire
}

func (s *stranded) name(of string) string { return of + "-" + s.node.Name }

func strand(t *testing.T, n *farm.Node) *stranded {
	t.Helper()
	s := &stranded{node: n, living: sleeper(t, n), dying: sleeper(t, n), waiters: make(map[string]*wire)}
	s.living.hold(t, n.Client(), s.name("living"), s.name("living"))
	s.dying.hold(t, n.Client(), s.name("dying"), s.name("dying"))
	s.command = startLockersh(t, n, s.name("command"), "cat")
	s.owner, _ = s.command.awaitLock(t, n, s.name("command"))
	return s
}

// await lets clients of a node wait for each of the locks.
func (s *stranded) await(t *testing.T, at *farm.Node) {
	t.Helper()
	for of, owner := range map[string]string{"living": s.name("living"), "dying": s.name("dying"), "command": s.owner} {
		s.waiters[of] = queued(t, at.Client(), "next", s.name(of), owner)
	}
}

// Holders are killed on all hosts while leaders are killed too, and now and then the
// agent of one host. None of their locks is granted to another before the death, and
// all are after it.
func TestDeathsWhileLeadersDie(t *testing.T) {
	const crowd, rounds = 10, 10
	f := start(t, farm.Options{Servers: 3, Agents: 1, Named: farm.CanName()})
	agent := f.Nodes[3]
	var spared []*process
	for i, n := range f.Nodes {
		p := sleeper(t, n)
		p.hold(t, n.Client(), fmt.Sprint("spared", i), fmt.Sprint("spared", i))
		spared = append(spared, p)
	}
	m := mourners{nodes: f.Nodes}
	ctx, cancel := context.WithCancelCause(limited(t, 3*time.Minute))
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range crowd {
		wg.Go(func() {
			for j := range rounds {
				if err := m.die(ctx, i*rounds+j); err != nil {
					cancel(fmt.Errorf("holder %d: %w", i*rounds+j, err))
					return
				}
			}
		})
	}
	kills := 0
	for ; m.count() < crowd*rounds && ctx.Err() == nil; kills++ {
		victims := []*farm.Node{leader(t, f)}
		if kills%3 == 1 {
			victims = append(victims, agent)
		}
		for _, n := range victims {
			n.Kill()
		}
		leader(t, f)
		for _, n := range victims {
			must(t, n.Start())
		}
		ready(t, f)
	}
	wg.Wait()
	must(t, context.Cause(ctx))
	t.Logf("%d holders and %d leaders killed; death to grant %v at the median, %v at worst",
		m.count(), kills, m.took[len(m.took)/2], m.took[len(m.took)-1])
	if kills < 3 {
		t.Errorf("only %d leaders were killed", kills)
	}
	for i, p := range spared {
		heldBy(t, f.Nodes[(i+1)%len(f.Nodes)].Client(), fmt.Sprint("spared", i), fmt.Sprint("spared", i))
		p.kill()
	}
	await(t, granted, "the last locks to be free", func() error {
		text, err := ask(f.Nodes[0].Client(), "LOCK_LIST", granted)
		if text = strings.TrimSpace(text); err == nil && text != "" {
			err = fmt.Errorf("still held: %q", text)
		}
		return err
	})
}

var errEarly = errors.New("its lock was granted while it lived")

// mourners wait for the locks of processes that are killed.
type mourners struct {
	nodes []*farm.Node

	mu   sync.Mutex
	took []time.Duration // from death to grant, sorted
}

func (m *mourners) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.took)
}

// die lets a process hold a lock and kills it, and returns once another has got
// the lock and given it up.
func (m *mourners) die(ctx context.Context, i int) error {
	lock, home := fmt.Sprint("lock", i), m.nodes[i%len(m.nodes)]
	p, err := startSleeper(home)
	if err != nil {
		return err
	}
	defer p.kill()
	if err := m.hold(ctx, p, i, lock); err != nil {
		return err
	}
	type grant struct {
		l   *client.Locker
		at  time.Time
		err error
	}
	got := make(chan grant, 1)
	waits := make(chan struct{}, 1)
	go func() {
		o := client.Options{
			Hosts: m.hosts(i + 1), Port: fmt.Sprint(home.Port), Locks: []string{lock}, User: "next-" + lock,
			HoldLimit: client.NoLimit, ConnectTries: 1000, ConnectDelay: 10 * time.Millisecond,
		}
		o.Hooks.Waiting = func(string) {
			select {
			case waits <- struct{}{}:
			default:
			}
		}
		l, err := client.Acquire(ctx, o)
		got <- grant{l, time.Now(), err}
	}()
	life := time.After(time.Hour)
	for alive := true; alive; {
		select {
		case <-waits:
			life = time.After(rand.N(500 * time.Millisecond))
		case <-life:
			alive = false
		case g := <-got:
			return fmt.Errorf("while it lived, the next one's wait ended: %w", cmp.Or(g.err, errEarly))
		}
	}
	killed := time.Now()
	if err := p.Process.Kill(); err != nil {
		return err
	}
	g := <-got
	switch {
	case g.err != nil:
		return fmt.Errorf("its lock was not granted to the next: %w", g.err)
	case g.at.Before(killed):
		return errEarly
	}
	m.mu.Lock()
	at, _ := slices.BinarySearch(m.took, g.at.Sub(killed))
	m.took = slices.Insert(m.took, at, g.at.Sub(killed))
	m.mu.Unlock()
	return g.l.Unlock(ctx)
}

func (m *mourners) hosts(first int) []string {
	var hosts []string
	for i := range m.nodes {
		hosts = append(hosts, m.nodes[(first+i)%len(m.nodes)].Host)
	}
	return hosts
}

// hold takes a lock for the process at whatever node can give it.
func (m *mourners) hold(ctx context.Context, p *process, i int, lock string) error {
	return farm.Await(ctx, "the holder's lock", func() error {
		i++
		w, err := dial(m.nodes[i%len(m.nodes)].Client())
		if err != nil {
			return err
		}
		defer w.Close()
		user := "holder-" + lock
		if err := w.send("proto 2\n%s", p.lock(user, lock, 0, 1)); err != nil {
			return err
		}
		return w.grant(user, granted)
	})
}

// Old clients give no start time. The number of one that has died is given to another
// process at once, which takes a lock of its own: it must not lose that by the death
// of the first, in whatever order the node hears of the two.
func TestAnOldClientsReusedNumber(t *testing.T) {
	t.Parallel()
	if !inside(t, syscall.CLONE_NEWPID|syscall.CLONE_NEWNS) {
		return
	}
	ownProc(t)
	f := start(t, farm.Options{})
	n := f.Nodes[0]
	at := n.Client()
	lock := func(user, lock string, pid int) string {
		return fmt.Sprintf("user %s\nlocks %s\nblock 0\ntimeout 0\nautounlock 1\npid %d\nhostname %s\nLOCK\n\n", user, lock, pid, n.Hostname())
	}
	for i := range 6 {
		one, two := fmt.Sprint("one", i), fmt.Sprint("two", i)
		first := sleeper(t, n)
		pid := first.Process.Pid
		holder, second := connect(t, at), connect(t, at)
		must(t, holder.send("%s", lock("first", one, pid)))
		must(t, holder.grant("first", granted))
		waiter := queued(t, at, "next", one, "first")
		stopped := i%2 == 0 // it hears of the death and of the lock at the same time
		if stopped {
			must(t, n.Signal(syscall.SIGSTOP))
		}
		first.kill()
		// Start times count in hundredths of a second.
		time.Sleep(20 * time.Millisecond)
		other := numbered(t, n, pid)
		must(t, second.send("%s", lock("second", two, pid)))
		if stopped {
			must(t, n.Signal(syscall.SIGCONT))
		}
		must(t, second.grant("second", granted))
		must(t, waiter.grant("next", granted))
		third := queued(t, at, "third", two, "second")
		third.silent(t, "third")
		// Nor by an old client's word on the first.
		if _, err := ask(at, fmt.Sprintf("DEAD_PID %s %d", n.Hostname(), pid), granted); err != nil {
			t.Fatal(err)
		}
		heldBy(t, at, two, "second")
		other.kill()
		must(t, third.grant("third", granted))
	}
}
