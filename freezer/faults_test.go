package freezer

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// orderKills is how often an order's processes are killed for each kind of target.
func orderKills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("FREEZER_TEST_ORDERKILLS")
	if text == "" {
		return 6
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("FREEZER_TEST_ORDERKILLS=%s: %v", text, err)
	}
	return n
}

// Whoever is killed while an order is carried out, and whenever, nothing stays frozen:
// neither with the executor's process, nor with its guard, nor, when an executor is
// started anew, with both.
func TestOrderKills(t *testing.T) {
	needIsolation(t)
	processes := func(t *testing.T) (action, spec string, frozen func() bool) {
		v := victims(t)
		return ActionFreeze, treeSpec(v.pid()), func() bool { return stopped(t) > 0 }
	}
	cgroup := func(t *testing.T) (action, spec string, frozen func() bool) {
		victims(t)
		await(t, "all processes", func() bool { return len(running(t)) == 4 })
		dir := newCgroup(t, running(t)...)
		return ActionFreeze, `{"targets":[{"kind":"cgroup","path":"` + dir + `"}]}`, func() bool { return cgroupFrozen(t, dir) }
	}
	fileSystem := func(fstype string) func(t *testing.T) (string, string, func() bool) {
		return func(t *testing.T) (action, spec string, frozen func() bool) {
			point := newFS(t, fstype)
			return ActionFSFreeze, fsSpec(point), func() bool { return frozenFS(t, point) }
		}
	}
	prompt := promptness{}
	for _, c := range []struct {
		name string
		make func(t *testing.T) (action, spec string, frozen func() bool)
	}{
		{"processes", processes},
		{"cgroup", cgroup},
		{"ext4", fileSystem("ext4")},
		{"xfs", fileSystem("xfs")},
		{"btrfs", fileSystem("btrfs")},
	} {
		t.Run(c.name, func(t *testing.T) {
			needIsolation(t)
			k := orderKiller{T: t, prompt: prompt, usual: 100 * time.Millisecond, others: map[int]bool{}}
			k.action, k.spec, k.frozen = c.make(t)
			for _, pid := range allPIDs(t) {
				k.others[pid] = true
			}
			for i := range orderKills(t) {
				k.round(orderVictims[i%3], []func(){k.killExecutor, k.killGuard, k.killBoth}[i%3], i/3%2 == 1)
			}
			if k.held == 0 {
				t.Error("never was anything frozen")
			}
			t.Logf("killed %d times, %d of them when it was frozen", orderKills(t), k.held)
		})
	}
	prompt.judge(t, orderVictims...)
}

var orderVictims = []string{"an executor killed", "a guard killed", "both killed"}

type orderKiller struct {
	*testing.T
	prompt       promptness // by what was killed when it was frozen
	action, spec string
	frozen       func() bool
	others       map[int]bool // that live all the time
	executor     *actor
	usual        time.Duration // from the order to the freeze
	held         int
}

// round has an order carried out, and kills when it is frozen, or at a moment that may
// be before.
func (k *orderKiller) round(cause string, kill func(), done bool) {
	k.executor = act(k, "executor "+k.action+" "+k.spec)
	began := time.Now()
	if done {
		if line := k.executor.line(k); line != "frozen" {
			k.Fatal(line)
		}
		k.usual = time.Since(began)
	} else {
		time.Sleep(time.Duration(rand.Int64N(int64(k.usual)))) // the moment is the test
	}
	all, err := List("")
	if err != nil {
		k.Fatal(err)
	}
	k.held += len(all)
	if len(all) == 0 {
		cause += " before"
	}
	killed, stood := time.Now(), stalls()
	kill()
	await(k, "the thaw", func() bool { return !k.frozen() })
	// What has not frozen yet may be about to.
	k.prompt.since(k, cause, "the end of the guard", killed, stood, func() bool { return len(guards(k)) == 0 })
	if k.frozen() {
		k.Fatal("it is frozen again")
	}
	cleanRun(k) // the executor may be at it still
	k.executor.kill()
	// It may have begun to start another process, which has no name yet.
	await(k, "the end of all that was started", func() bool {
		return !slices.ContainsFunc(allPIDs(k), func(pid int) bool { return !k.others[pid] && stateOf(pid) != "Z" })
	})
	cleanRun(k)
}

func (k *orderKiller) killExecutor() { k.executor.kill() }

// killGuard leaves it to the executor to thaw. If the order has not come to that yet it
// may go on with another guard, and is ended.
func (k *orderKiller) killGuard() {
	pids := guards(k)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if len(pids) == 0 {
		k.executor.kill()
	}
}

// killBoth starts an executor anew.
func (k *orderKiller) killBoth() {
	pids := guards(k)
	for _, pid := range pids { // it cannot act between the two
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	k.executor.kill()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	x, err := NewExecutor(ExecutorConfig{Procs: true, FS: true})
	if err == nil {
		await(k, "the thaw", func() bool { return !k.frozen() })
		err = x.Close()
	}
	if err != nil {
		k.Fatal("start an executor anew:", err)
	}
}
