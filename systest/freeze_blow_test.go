package systest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/systest/farm"
)

// running is the lockctls that freeze, or are about to: file systems on all nodes, and
// processes, on all nodes too if there are cgroups.
type running struct {
	site   *site
	by     *farm.Node // where they run
	victim *farm.Node // who may be hit; it has part in both
	cmds   []*frozenBy
	began  time.Time // everything was frozen then
}

// frozenBy is one of them.
type frozenBy struct {
	cmd   *exec.Cmd
	said  syncBuffer
	flag  string        // a file that is there when all is frozen
	ended chan struct{} // closed
}

// freeze starts one more. Its targets come after the nodes.
func (f *running) freeze(words ...string) {
	s := f.site
	c := &frozenBy{flag: filepath.Join(s.dir, fmt.Sprint("frozen", len(f.cmds))), ended: make(chan struct{})}
	_ = os.Remove(c.flag)
	c.cmd = s.command(f.by.Name, append(words, "--", "sh", "-c", "echo >"+c.flag+"; exec sleep 1000")...)
	c.cmd.Stderr = &c.said
	must(s.t, f.by.Within(c.cmd.Start))
	f.cmds = append(f.cmds, c)
	go func() {
		_ = c.cmd.Wait()
		close(c.ended)
	}()
}

// lockctls lists those processes.
func (f *running) lockctls() (pids []int) {
	for _, c := range f.cmds {
		pids = append(pids, c.cmd.Process.Pid)
	}
	return pids
}

func (f *running) kill() error {
	var errs []error
	for _, c := range f.cmds {
		if err := c.cmd.Process.Kill(); !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// over says that one of them has ended.
func (f *running) over() bool {
	for _, c := range f.cmds {
		select {
		case <-c.ended:
			return true
		default:
		}
	}
	return false
}

// frozen says that everything is, as far as they know.
func (f *running) frozen() bool {
	for _, c := range f.cmds {
		if _, err := os.Stat(c.flag); err != nil {
			return false
		}
	}
	return !f.over()
}

// still is a process, or those of a cgroup, that is frozen by somebody.
type still struct {
	on       *farm.Node
	isFrozen func() bool
}

// attempt is one freeze that is broken off.
func (s *site) attempt(e ending, rng *rand.Rand, early bool) outcome {
	must(s.t, s.farm.AwaitReady(limited(s.t, 30*time.Second)))
	lead, err := s.farm.AwaitLeader(limited(s.t, 30*time.Second))
	must(s.t, err)
	nodes := s.farm.Nodes[:3]
	f := &running{site: s, by: nodes[rng.IntN(3)], victim: nodes[rng.IntN(3)]}
	timeout := longFreeze
	if e.name == "deadline" {
		timeout = shortFreeze
	}
	seconds := fmt.Sprint(timeout.Seconds())
	processes, words, end := s.stills(f.victim, rng)
	defer end()
	f.freeze("fsfreeze", "--timeout", seconds, "--node", all, s.data)
	f.freeze(append([]string{"freeze", "--timeout", seconds}, words...)...)
	if early {
		time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
	} else {
		await(s.t, 40*time.Second, "the freeze", func() error {
			if !f.frozen() && !f.over() {
				return errors.New("not yet")
			}
			return nil
		})
		f.began = time.Now()
	}
	watch := s.watch(f, e, processes)
	if !early && e.name != "deadline" {
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
	}
	o := outcome{frozen: f.frozen() && watch.stands(), hit: "nobody", lead: lead.Name}
	at, ended := time.Now(), time.Now
	switch {
	case e.name == "deadline":
		at = f.began.Add(shortFreeze)
	case e.kills != nil:
		ended = s.end(e.kills(f))
	}
	struck, heal, err := e.do(s, f)
	if e.kills != nil {
		killed := at
		at = ended()
		o.dying = at.Sub(killed)
	}
	watch.blow(struck, at)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Fatalf("%s: %v", e.name, err)
	}
	if struck != nil {
		o.hit = struck.Name
	}
	o.moved = watch.end(o.frozen)
	o.at, o.stall, o.slow = at, watch.stall, watch.slow
	heal()
	s.awaitLockctl(e, f)
	return o
}

// end looks out for the end of processes, and returns what waits for it and says when the last of
// them had ended: that is when their descriptors are closed, however long it takes to reap them.
func (s *site) end(pids []int) func() time.Time {
	var fds []int
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // and has been reaped
		}
		must(s.t, err)
		fds = append(fds, fd)
	}
	done := make(chan time.Time, 1)
	go func() {
		for _, fd := range fds {
			for {
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Minute/time.Millisecond))
				if n > 0 || !errors.Is(err, unix.EINTR) {
					break
				}
			}
			_ = unix.Close(fd)
		}
		done <- time.Now()
	}()
	return func() time.Time { return <-done }
}

// logTime is how the nodes write the time, in UTC.
const logTime = "2006-01-02T15:04:05.000"

// logsFrom is what the nodes have logged since.
func (s *site) logsFrom(since time.Time) string {
	var text strings.Builder
	for _, n := range s.farm.Nodes {
		for line := range strings.Lines(n.Log()) {
			if line >= since.UTC().Format(logTime) {
				text.WriteString(n.Name + " " + line)
			}
		}
	}
	return text.String()
}

// awaitLockctl wants each lockctl that lives to say that it was thawed, and to end.
func (s *site) awaitLockctl(e ending, f *running) {
	for _, c := range f.cmds {
		select {
		case <-c.ended:
			if text := c.said.String(); e.name != "lockctl killed" && !regexp.MustCompile(`thawed too early|refused|no answer`).MatchString(text) {
				s.t.Errorf("%s: lockctl says %q", e.name, text)
			}
		case <-time.After(60 * time.Second):
			s.t.Errorf("%s: lockctl does not end: %s", e.name, strings.TrimSpace(c.said.String()))
			_ = c.cmd.Process.Kill()
			<-c.ended
		}
	}
}

// stills starts processes to be frozen: in the cgroups of all nodes, or a tree on one. The
// words say so to lockctl freeze.
func (s *site) stills(on *farm.Node, rng *rand.Rand) (list []still, words []string, end func()) {
	if !s.cgroups || rng.IntN(2) == 0 {
		c := exec.Command("sh", "-c", "sleep 1000 & wait")
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		must(s.t, c.Start())
		pid := fmt.Sprint(c.Process.Pid)
		return []still{{on, func() bool { return state(pid) == "T" }}}, []string{"--node", on.Name, "--tree", pid}, func() {
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
			_ = c.Wait()
		}
	}
	var started []*exec.Cmd
	for _, n := range s.farm.Nodes[:3] {
		c := exec.Command("sleep", "1000")
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(s.t, c.Start())
		started = append(started, c)
		must(s.t, os.WriteFile(s.cgroup(n.Name)+"/cgroup.procs", []byte(fmt.Sprint(c.Process.Pid)), 0o600))
		events := s.cgroup(n.Name) + "/cgroup.events"
		list = append(list, still{n, func() bool {
			b, err := os.ReadFile(events)
			return err != nil || strings.Contains(string(b), "frozen 1")
		}})
	}
	return list, []string{"--node", all, "--cgroup", s.dir + "/cg"}, func() {
		for _, c := range started {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
}

// watching looks at everything that is to be frozen, before the blow and after.
type watching struct {
	s         *site
	struckAt  chan struct{} // closed at the blow
	at        time.Time     // of the blow
	struck    *farm.Node
	processes []still
	looking   sync.WaitGroup
	stop      chan struct{} // nobody counts stalls any more
	counting  sync.WaitGroup

	mu    sync.Mutex
	first map[int]time.Time // end of the first write to each volume
	waits []waited
	slow  time.Duration // the longest write where nothing was ever frozen: no excuse, as whatever held it up may be the freeze
	stall time.Duration // after the blow
}

// waited is a write, or a look at a process that stands.
type waited struct {
	what   string
	on     *farm.Node
	from   time.Time
	to     time.Time
	proper bool // it waited for a thaw for sure
}

func (s *site) watch(f *running, e ending, processes []still) *watching {
	w := &watching{s: s, struckAt: make(chan struct{}), stop: make(chan struct{}), processes: processes, first: map[int]time.Time{}}
	until := func() time.Time { return w.at.Add(e.others + election + watchOn) }
	if byHand() == 0 {
		until = func() time.Time { return w.at.Add(2 * watchOn) }
	}
	for i, v := range s.volumes {
		w.volume(v, until, func(n int, began time.Time) {
			if n == 0 {
				w.first[i] = time.Now()
			}
			w.waits = append(w.waits, waited{"file system", s.farm.Nodes[i], began, time.Now(), n == 0})
		})
	}
	w.volume(s.kept, until, func(_ int, began time.Time) { w.slow = max(w.slow, time.Since(began)) })
	for _, p := range processes {
		w.looking.Go(func() {
			for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				stood := p.isFrozen()
				w.mu.Lock()
				if stood {
					w.waits = append(w.waits, waited{"process", p.on, began, time.Now(), true})
				}
				w.mu.Unlock()
				select {
				case <-w.struckAt:
				default:
					continue
				}
				switch {
				case stood && time.Since(w.at) > 2*longFreeze:
					s.t.Errorf("%s: a process on %s is frozen still", e.name, p.on.Name)
					return
				case !stood && time.Now().After(until()):
					return
				}
			}
		})
	}
	w.counting.Go(func() {
		const tick = 10 * time.Millisecond
		for last := time.Now(); ; {
			select {
			case <-w.stop:
				return
			case <-time.After(tick):
			}
			now := time.Now()
			select {
			case <-w.struckAt:
				w.mu.Lock()
				w.stall = max(w.stall, now.Sub(last)-tick)
				w.mu.Unlock()
			default:
			}
			last = now
		}
	})
	return w
}

// volume writes to a file system over and over, from before the blow on: the first write
// waits for the thaw if everything is frozen, and what is still on its way to be frozen
// holds up a later one.
func (w *watching) volume(v *volume, until func() time.Time, note func(n int, began time.Time)) {
	w.looking.Go(func() {
		for n := 0; ; n++ {
			began := time.Now()
			_, err := v.written(2 * longFreeze)
			w.mu.Lock()
			note(n, began)
			w.mu.Unlock()
			if err != nil {
				w.s.t.Error(err)
				return
			}
			<-w.struckAt
			if time.Now().After(until()) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// stands says that nothing has moved yet.
func (w *watching) stands() bool {
	for _, p := range w.processes {
		if !p.isFrozen() {
			return false
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.first) == 0
}

func (w *watching) blow(struck *farm.Node, at time.Time) {
	w.at, w.struck = at, struck
	close(w.struckAt)
}

// end waits until everything moves, and says when it did.
func (w *watching) end(frozen bool) (list []moved) {
	w.looking.Wait()
	close(w.stop)
	w.counting.Wait()
	type place struct {
		what string
		on   *farm.Node
	}
	last := map[place]time.Duration{}
	for _, x := range w.waits {
		// A write that was begun when nothing was known to be frozen is taken to have waited
		// for a thaw if it was far longer than where nothing was ever frozen.
		thaw := x.what == "process" || x.proper && frozen || x.to.Sub(x.from) > looks+w.slow
		if after := x.to.Sub(w.at); thaw && (after > 0 || frozen) {
			at := place{x.what, x.on}
			last[at] = max(last[at], after)
		}
	}
	for at, after := range last {
		list = append(list, moved{at.what, at.on == w.struck, after})
	}
	return list
}
