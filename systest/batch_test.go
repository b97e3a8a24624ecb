package systest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/systest/farm"
)

// killsEnv is how many hosts die under the batch job.
const killsEnv = "SYSTEST_BATCH_KILLS"

const (
	// batchLease is the --lease of the job.
	batchLease = 2 * time.Second
	// takeOverTime is many times what passes until another host goes on with the job, which
	// is the lease and a restart.
	takeOverTime = time.Minute
)

// batchSite is two hosts that share a directory, where a job runs: docs/examples/steps.sh.
type batchSite struct {
	t     *testing.T
	farm  *farm.Farm
	hosts []*farm.Node
	dir   string
	steps int
}

// onBatchSite runs the test where it has such a site.
func onBatchSite(t *testing.T, steps int) *batchSite {
	t.Helper()
	skip := t.Skip
	if os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("it takes root to checkpoint processes")
	}
	criu, err := checkpoint.Find(t.Context())
	if err != nil {
		skip(err)
	}
	// What we were given is of other mounts than the hosts have, and CRIU refuses such.
	must(t, unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC))
	if !inside(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID) {
		return nil
	}
	ownProc(t)
	s := &batchSite{t: t, dir: t.TempDir(), steps: steps}
	must(t, os.Mkdir(s.path("contexts"), 0o700))
	for name, text := range map[string]string{"boots": "0", "journal": ""} {
		must(t, os.WriteFile(s.path(name), []byte(text), 0o600))
	}
	here, err := os.Getwd()
	must(t, err)
	job := filepath.Join(filepath.Dir(here), "docs/examples/steps.sh")
	wrap := func(name string) []string {
		if name[0] != 'a' {
			return nil
		}
		return []string{
			"unshare", "--mount", "--pid", "--fork", "--kill-child", "env",
			"LOCKERD_CRIU=" + criu.Path, "PATH=" + filepath.Dir(lockersh) + ":" + os.Getenv("PATH"), "LEASE=" + batchLease.String(), "STEPS_JOB=" + job,
			"sh", filepath.Join(here, "testdata/batchhost"), name, s.dir, s.path("journal"), strconv.Itoa(steps), "0.05",
		}
	}
	s.farm = start(t, farm.Options{Servers: 3, Agents: 2, Hosts: true, Wrap: wrap})
	s.hosts = s.farm.Nodes[3:]
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range s.hosts {
				t.Logf("--- the job on %s\n%s", n.Name, s.log(n))
			}
			journal, _ := os.ReadFile(s.path("journal"))
			t.Logf("--- the journal\n%s", journal)
		}
	})
	return s
}

func (s *batchSite) path(name string) string { return filepath.Join(s.dir, name) }

func (s *batchSite) log(n *farm.Node) string {
	text, _ := os.ReadFile(s.path(n.Name + ".log")) // there is none before its first word
	return string(text)
}

// record is a line of the job's journal.
type record struct {
	fence, step, result int
	host                string
}

func (s *batchSite) journal() (all []record) {
	s.t.Helper()
	text, err := os.ReadFile(s.path("journal"))
	must(s.t, err)
	for line := range strings.Lines(string(text)) {
		var r record
		if n, err := fmt.Sscanf(line, "%d %d %d %s\n", &r.fence, &r.step, &r.result, &r.host); n != 4 || err != nil {
			s.t.Fatalf("the journal has a line %q", line)
		}
		all = append(all, r)
	}
	return all
}

// last is the last record, and awaits one if there is none.
func (s *batchSite) last() (r record) {
	s.t.Helper()
	await(s.t, takeOverTime, "a step", func() error {
		all := s.journal()
		if len(all) == 0 {
			return errors.New("the journal is empty")
		}
		r = all[len(all)-1]
		return nil
	})
	return r
}

// running awaits that the job runs in a later hold than that of fence, and has a context
// of that hold, made on its host.
func (s *batchSite) running(fence int) (r record, on *farm.Node) {
	s.t.Helper()
	await(s.t, takeOverTime, "the job to go on", func() error {
		r = s.last()
		if r.fence <= fence {
			return fmt.Errorf("the last step is %+v", r)
		}
		contexts, err := filepath.Glob(s.path(fmt.Sprintf("contexts/steps.%d.*.ckpt", r.fence)))
		must(s.t, err)
		for _, c := range contexts {
			// The first two have been taken over.
			if n, _ := strconv.Atoi(strings.Split(filepath.Base(c), ".")[2]); n > 2 || fence == 0 {
				return nil
			}
		}
		return errors.New("it has no context of its own")
	})
	for _, n := range s.hosts {
		if n.Hostname() == r.host {
			on = n
		}
	}
	if on == nil {
		s.t.Fatalf("no host is called %q", r.host)
	}
	return r, on
}

// init is the first process of a host.
func (s *batchSite) init(n *farm.Node) int {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", n.PID()))
	must(s.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(s.t, err)
	return pid
}

// die kills every process of a host at once: the kernel does, with the first process of
// its pid namespace.
func (s *batchSite) die(n *farm.Node) {
	s.t.Helper()
	must(s.t, syscall.Kill(s.init(n), syscall.SIGKILL))
	_, err := n.AwaitExit(limited(s.t, takeOverTime))
	must(s.t, err)
}

// finish awaits the job's end, and looks whether each step was done once, with the right
// result, by holds that came one after the other.
func (s *batchSite) finish(holds int) {
	s.t.Helper()
	await(s.t, time.Duration(s.steps)*time.Second+takeOverTime, "the job to end on both hosts", func() error {
		for _, n := range s.hosts {
			if _, err := os.Stat(s.path(n.Name + ".ended")); err != nil {
				return err
			}
		}
		return nil
	})
	all := s.journal()
	if len(all) != s.steps {
		s.t.Errorf("%d steps are recorded, of %d", len(all), s.steps)
	}
	result, fences := 1, map[int]bool{}
	for i, r := range all {
		result = (result*48271 + i + 1) % 2147483647
		if r.step != i+1 || r.result != result {
			s.t.Errorf("record %d is %+v, and the result is %d", i+1, r, result)
		}
		if i > 0 && (r.fence < all[i-1].fence || r.fence == all[i-1].fence && r.host != all[i-1].host) {
			s.t.Errorf("record %+v comes after %+v", r, all[i-1])
		}
		fences[r.fence] = true
	}
	if len(fences) < holds {
		s.t.Errorf("it ran in %d holds, and %d were to be", len(fences), holds)
	}
	log := s.log(s.hosts[0]) + s.log(s.hosts[1])
	if n := strings.Count(log, "goes on as it was"); n < holds-1 {
		s.t.Errorf("it was restored %d times, in %d holds", n, holds)
	}
	if n := strings.Count(log, "has ended on"); n != 1 {
		s.t.Errorf("%d hosts heard that the other has ended the job", n)
	}
	for _, never := range []string{"starts anew", "replaced by"} {
		if strings.Contains(log, never) {
			s.t.Errorf("it %s", never)
		}
	}
	left, err := os.ReadDir(s.path("contexts"))
	must(s.t, err)
	if len(left) != 1 || left[0].Name() != "steps.done" {
		s.t.Errorf("%v are left", left)
	}
	s.t.Logf("%d steps in %d holds, restored %d times", len(all), len(fences), strings.Count(log, "goes on as it was"))
}

// TestBatchJobOutlivesItsHosts is the example of docs/batch.md. With killsEnv it is longer.
func TestBatchJobOutlivesItsHosts(t *testing.T) {
	t.Parallel()
	kills := number(killsEnv, 2)
	if kills > 2 {
		insideTime = time.Hour // by hand
	}
	s := onBatchSite(t, 20+25*kills)
	if s == nil {
		return
	}
	fence := 0
	for range kills {
		r, on := s.running(fence)
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond) // at any moment of its checkpoints
		s.die(on)
		fence = max(r.fence, s.last().fence)
		must(t, on.Start())
	}
	s.finish(kills + 1)
}

// TestBatchJobOfACutHost: its host is alive, and so is the directory, but nobody else
// would know. The job is dead before another host goes on with it.
func TestBatchJobOfACutHost(t *testing.T) {
	t.Parallel()
	s := onBatchSite(t, 80)
	if s == nil {
		return
	}
	r, cut := s.running(0)
	must(t, cut.Cut())
	r, on := s.running(r.fence)
	must(t, cut.Heal())
	// And one whose lockersh does not run any more to see its lease end.
	must(t, syscall.Kill(s.lockersh(on), syscall.SIGSTOP))
	_, other := s.running(r.fence)
	if other == on {
		t.Fatal("who stood still goes on")
	}
	s.die(on)
	must(t, on.Start())
	s.finish(3)
}

// lockersh is that process on a host.
func (s *batchSite) lockersh(n *farm.Node) int {
	s.t.Helper()
	init := s.init(n)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", init))
	must(s.t, err)
	for _, word := range strings.Fields(string(text)) {
		name, err := os.ReadFile("/proc/" + word + "/comm")
		if err == nil && strings.TrimSpace(string(name)) == "lockersh" {
			pid, err := strconv.Atoi(word)
			must(s.t, err)
			return pid
		}
	}
	s.t.Fatalf("there is no lockersh on %s", n.Name)
	return 0
}
