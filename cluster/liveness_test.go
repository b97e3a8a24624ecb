package cluster

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
)

// watchProcesses is what cmd/lockerd gives its node.
func watchProcesses(dead func(pidprobe.Process), warn func(error)) (Processes, error) {
	return pidprobe.NewWatcher(dead, warn)
}

// sleeper starts a process to hold locks, and ends it with the test.
func sleeper(t testing.TB) (*exec.Cmd, fsm.Process) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := pidprobe.Lookup(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return cmd, fsm.Process{Host: "h", PID: p.PID, Start: p.Start, Boot: thisPlace().Boot}
}

// TestALockLastsAsLongAsItsProcess kills the holder's process, with -9 and without
// reaping it, and has the next one granted through another node.
func TestALockLastsAsLongAsItsProcess(t *testing.T) {
	f := newFarm(t, 3)
	f.leader()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var took []time.Duration
	for i := range 20 {
		cmd, p := sleeper(t)
		holder := fmt.Sprintf("holder%d", i)
		_, res, err := f.nodes[i%3].Acquire(ctx, fsm.Acquire{Owner: holder, Locks: []string{"a"}, Block: true, Process: p, Autounlock: true}, func(fsm.Event) {})
		if err != nil || res.Code != fsm.Granted {
			t.Fatalf("%s: %+v, %v", holder, res, err)
		}
		w := &simWaiter{owner: fmt.Sprintf("waiter%d", i), node: f.nodes[(i+1)%3], told: make(chan struct{})}
		_, res, err = w.node.Acquire(ctx, fsm.Acquire{Owner: w.owner, Locks: []string{"a"}, Block: true}, w.notify)
		if err != nil || res.Code != fsm.Queued {
			t.Fatalf("%s: %+v, %v", w.owner, res, err)
		}
		died := time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		fence := w.fence(ctx, t)
		took = append(took, time.Since(died))
		if _, err := w.node.Submit(ctx, fsm.Release{Fence: fence}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	t.Logf("death to grant: median %v, worst %v", took[len(took)/2], took[len(took)-1])
}

// TestAStoppedProcessKeepsItsLock: what is not dead holds on.
func TestAStoppedProcessKeepsItsLock(t *testing.T) {
	f := newFarm(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd, p := sleeper(t)
	n := f.nodes[0]
	if _, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{"a"}, Process: p, Autounlock: true}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A second holder, which does die, shows that deaths have been looked at.
	other, q := sleeper(t)
	if _, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "bob", Locks: []string{"b"}, Process: q, Autounlock: true}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "carl", Locks: []string{"b"}, Block: true}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted && res.Code != fsm.Queued {
		t.Fatalf("%+v, %v", res, err)
	}
	for {
		res, err := n.Status(ctx, "carl", []string{"b"})
		if err != nil {
			t.Fatal(err)
		}
		if res.Code == fsm.Granted {
			break
		}
	}
	if res, err := n.Status(ctx, "amy", []string{"a"}); err != nil || res.Code != fsm.Granted {
		t.Fatalf("the stopped process has lost its lock: %+v, %v", res, err)
	}
}

// TestDeathsWhileTheNodeIsDown: a node that starts finds out which of the
// processes it is to watch have ended meanwhile.
func TestDeathsWhileTheNodeIsDown(t *testing.T) {
	f := newFarm(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd, p := sleeper(t)
	if _, res, err := f.nodes[0].Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{"a"}, Process: p, Autounlock: true}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := f.nodes[0].Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n := f.start(0)
	w := &simWaiter{owner: "bob", node: n, told: make(chan struct{})}
	_, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "bob", Locks: []string{"a"}, Block: true}, w.notify)
	if err != nil {
		t.Fatal(err)
	}
	if res.Code == fsm.Queued {
		w.fence(ctx, t)
	}
}

// mortality is a host's processes in a simulation.
type mortality struct {
	mu     sync.Mutex
	dead   map[pidprobe.Process]bool
	tell   map[pidprobe.Process]func(pidprobe.Process)
	starts map[int32]uint64 // of the processes that have the numbers now; 0 cannot be read
}

func newMortality() *mortality {
	return &mortality{
		dead:   make(map[pidprobe.Process]bool),
		tell:   make(map[pidprobe.Process]func(pidprobe.Process)),
		starts: make(map[int32]uint64),
	}
}

// take gives a number to a process, or to none.
func (m *mortality) take(pid int32, start uint64, lives bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.starts, pid)
	if lives {
		m.starts[pid] = start
	}
}

func (m *mortality) watched() (list []pidprobe.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.tell {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b pidprobe.Process) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Start, b.Start))
	})
	return list
}

func (m *mortality) watcher(dead func(pidprobe.Process)) Processes { return mortalWatcher{m, dead} }

type mortalWatcher struct {
	*mortality
	report func(pidprobe.Process)
}

func (w mortalWatcher) Identify(p pidprobe.Process) (pidprobe.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Start != 0 {
		return p, nil
	}
	start, ok := w.starts[p.PID]
	switch {
	case !ok:
		return p, pidprobe.ErrDead
	case start == 0:
		return p, pidprobe.ErrUnsure
	}
	p.Start = start
	return p, nil
}

func (w mortalWatcher) Watch(p pidprobe.Process) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead[p] {
		go w.report(p)
		return nil
	}
	w.tell[p] = w.report
	return nil
}

func (w mortalWatcher) Unwatch(p pidprobe.Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tell, p)
}

func (mortalWatcher) Close() error { return nil }

func (m *mortality) kill(p pidprobe.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead[p] = true
	if tell := m.tell[p]; tell != nil {
		delete(m.tell, p)
		go tell(p)
	}
}

// TestSimulatedDeaths kills holders and waiters while leaders come and go, and
// checks that no lock is freed while its process lives and none is left after.
func TestSimulatedDeaths(t *testing.T) {
	rounds := rounds(1000)
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0)
		hosts := make(map[string]*mortality)
		s.configure = func(c *Config) {
			m := hosts[c.Name]
			if m == nil {
				m = newMortality()
				hosts[c.Name] = m
			}
			c.Host = c.Name
			c.Processes = func(dead func(pidprobe.Process), _ func(error)) (Processes, error) { return m.watcher(dead), nil }
		}
		s.grow(3)
		defer s.close()
		for i := range rounds {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			leader := s.leader()
			host := s.peers[i%3].ID
			p := fsm.Process{Host: host, PID: int32(i + 1), Start: uint64(i + 1)}
			lock := []string{fmt.Sprintf("l%d", i%7)}
			// Through another node than that of its host.
			via := s.nodes[s.peers[(i+1)%3].ID]
			_, res, err := via.Acquire(ctx, fsm.Acquire{Owner: fmt.Sprint("o", i), Locks: lock, Block: true, Process: p, Autounlock: true}, func(fsm.Event) {})
			if err != nil || res.Code != fsm.Granted {
				t.Fatalf("round %d: %+v, %v", i, res, err)
			}
			if i%4 == 0 {
				s.net.Isolate(leader.cfg.Name + ":1")
			}
			w := &simWaiter{owner: fmt.Sprint("w", i), node: s.nodes[s.peers[(i+2)%3].ID], told: make(chan struct{})}
			var killed atomic.Bool
			granted := make(chan fsm.Fence, 1)
			go func() {
				_, res, err := w.node.Acquire(ctx, fsm.Acquire{Owner: w.owner, Locks: lock, Block: true}, w.notify)
				fence := res.Fence
				if err == nil && res.Code == fsm.Queued {
					fence = w.fence(ctx, t)
				} else if err != nil || res.Code != fsm.Granted {
					t.Errorf("round %d: %+v, %v", i, res, err)
				}
				if !killed.Load() {
					t.Errorf("round %d: granted while the holder lived", i)
				}
				granted <- fence
			}()
			// Time for elections, and for anything else to go wrong.
			time.Sleep(time.Duration(1+i%5) * time.Second)
			if i%8 == 0 {
				s.net.Heal()
			}
			killed.Store(true)
			hosts[host].kill(probed(p))
			time.Sleep(10 * time.Millisecond)
			s.net.Heal()
			fence := <-granted
			if _, err := w.node.Submit(ctx, fsm.Release{Fence: fence}); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
		table, err := s.leader().Table(context.Background(), false)
		if err != nil || len(table.Holds)+len(table.Waits) != 0 {
			t.Errorf("left behind: %d holds, %d waits, %v", len(table.Holds), len(table.Waits), err)
		}
		for _, n := range s.nodes {
			n.liveness.mu.Lock()
			if left := len(n.liveness.wards) + len(n.liveness.dead) + len(n.liveness.fences) + len(n.liveness.tickets); left != 0 {
				t.Errorf("%s still watches %d", n.Name(), left)
			}
			n.liveness.mu.Unlock()
		}
	})
}

// TestANumberUsedAgain: old clients give no start time. What two processes hold that
// have had one number after another ends with each of them.
func TestANumberUsedAgain(t *testing.T) {
	const host, pid = "h.example", 77
	old := fsm.Process{Host: host, PID: pid}
	for _, c := range []struct {
		name string
		run  func(u usedAgain)
	}{
		{"before the death is told", func(u usedAgain) {
			u.take(pid, 1, true)
			u.hold("a", "first", old)
			u.take(pid, 2, true)
			u.hold("b", "second", old)
			u.kill(pidprobe.Process{Host: host, PID: pid, Start: 1})
			u.free("a")
			u.keeps("b", "second")
		}},
		{"while the death is not reported yet", func(u usedAgain) {
			u.take(pid, 1, true)
			lift := u.anchor(old, u.hold("a", "first", old))
			u.kill(pidprobe.Process{Host: host, PID: pid, Start: 1})
			u.n.seen(u.T, old)
			u.take(pid, 2, true)
			u.hold("b", "second", old)
			lift()
			u.free("a")
			u.keeps("b", "second")
		}},
		{"after one that was dead when it was looked up", func(u usedAgain) {
			lift := u.anchor(old, u.n.lastFence()+1)
			u.hold("a", "first", old)
			u.n.seen(u.T, old)
			u.hold("c", "first", old) // as dead as that
			u.free("c")
			u.take(pid, 2, true)
			u.hold("b", "second", old)
			lift()
			u.free("a")
			u.keeps("b", "second")
		}},
		{"while the dead one waits", func(u usedAgain) {
			u.take(pid, 1, true)
			u.hold("a", "other", fsm.Process{})
			u.queue("a", "first", old)
			u.take(pid, 2, true)
			u.hold("b", "second", old)
			u.release("a")
			u.keeps("a", "first")
			u.kill(pidprobe.Process{Host: host, PID: pid, Start: 1})
			u.free("a")
			u.keeps("b", "second")
		}},
		{"by one that takes over the hold", func(u usedAgain) {
			u.take(pid, 1, true)
			u.hold("a", "first", old)
			u.take(pid, 2, true)
			u.hold("a", "first", old)
			if now := u.watched(); len(now) != 1 || now[0].Start != 2 {
				u.Fatalf("watched: %v", now)
			}
			u.kill(pidprobe.Process{Host: host, PID: pid, Start: 2})
			u.free("a")
		}},
		{"where start times cannot be read", func(u usedAgain) {
			u.take(pid, 0, true)
			u.hold("a", "first", old)
			first := u.watched()
			u.hold("b", "second", old)
			if now := u.watched(); len(first) != 1 || len(now) != 2 {
				u.Fatalf("watched: %v, then %v", first, now)
			}
			u.kill(first[0])
			u.free("a")
			u.keeps("b", "second")
		}},
		{"and compared with the table", func(u usedAgain) {
			u.take(pid, 1, true)
			u.hold("a", "first", old)
			u.take(pid, 2, true)
			u.hold("b", "second", old)
			u.n.recharge()
			u.kill(pidprobe.Process{Host: host, PID: pid, Start: 1})
			u.free("a")
			u.keeps("b", "second")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMortality()
			f := newFarm(t, 1, func(c *Config) {
				c.Host = host
				c.Processes = func(dead func(pidprobe.Process), _ func(error)) (Processes, error) { return m.watcher(dead), nil }
			})
			u := usedAgain{t, m, f.nodes[0]}
			c.run(u)
			for _, p := range u.watched() {
				u.kill(p)
			}
			u.free("b") // the second's end is seen
		})
	}
}

// usedAgain is a node whose processes are made up.
type usedAgain struct {
	*testing.T
	*mortality
	n *Node
}

func (u usedAgain) hold(lock, owner string, p fsm.Process) fsm.Fence {
	u.Helper()
	res := u.n.mustAcquire(u.T, fsm.Acquire{Owner: owner, Locks: []string{lock}, Process: p, Autounlock: p.PID != 0}, func(fsm.Event) {})
	if res.Code != fsm.Granted {
		u.Fatalf("%s for %s: %+v", lock, owner, res)
	}
	return res.Fence
}

func (u usedAgain) queue(lock, owner string, p fsm.Process) {
	u.Helper()
	res := u.n.mustAcquire(u.T, fsm.Acquire{Owner: owner, Locks: []string{lock}, Block: true, Process: p, Autounlock: true}, func(fsm.Event) {})
	if res.Code != fsm.Queued {
		u.Fatalf("%s for %s: %+v", lock, owner, res)
	}
}

func (u usedAgain) release(lock string) {
	u.Helper()
	_, err := u.n.Submit(u.Context(), fsm.Break{Locks: []string{lock}, By: "test"})
	must(u.T, err)
}

func (u usedAgain) anchor(p fsm.Process, f fsm.Fence) (lift func()) {
	u.Helper()
	lift, err := u.n.Anchor(p, f, func() {})
	must(u.T, err)
	return lift
}

func (u usedAgain) free(lock string) {
	u.Helper()
	must(u.T, waitUntil(lock+" to be free", func() bool { return tableOf{u.T, u.n}.holder(lock) == "" }))
}

func (u usedAgain) keeps(lock, owner string) {
	u.Helper()
	if h := (tableOf{u.T, u.n}).holder(lock); h != owner {
		u.Fatalf("%s is %q's", lock, h)
	}
}

func (n *Node) lastFence() (f fsm.Fence) {
	n.replica.view(func(m *fsm.Machine) { f = m.Counts().Fence })
	return f
}

// TestAHintIsNotForContainers: a client's word that a process is dead says nothing of
// one that has the same number in a container.
func TestAHintIsNotForContainers(t *testing.T) {
	n := newFarm(t, 1).nodes[0]
	cmd, p := sleeper(t)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	boot, _, _ := strings.Cut(thisPlace().Boot, "/")
	p.Host = n.host
	contained := fsm.Process{Host: n.host, PID: p.PID, Boot: boot + "/1"}
	loose := p // by a name of this host that its own clients would not give
	loose.Host, loose.Start, loose.Boot = n.host+".example", 0, ""
	for lock, q := range map[string]fsm.Process{"a": contained, "b": loose} {
		if res := n.mustAcquire(t, fsm.Acquire{Owner: lock, Locks: []string{lock}, Process: q, Autounlock: true}, func(fsm.Event) {}); res.Code != fsm.Granted {
			t.Fatalf("%+v", res)
		}
		must(t, n.Dead(t.Context(), fsm.Process{Host: q.Host, PID: q.PID}))
	}
	if h := (tableOf{t, n}).holder("a"); h != "a" {
		t.Errorf("the container's lock is %q's", h)
	}
	if h := (tableOf{t, n}).holder("b"); h != "" {
		t.Errorf("the dead process's lock is %q's", h)
	}
}
