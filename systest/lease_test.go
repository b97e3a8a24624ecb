package systest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/systest/farm"
)

const (
	// lease leaves a guard a tenth of it to kill everything: on a busy machine that is what
	// counts, and a moment more than 0.2 s has been seen to be too little.
	lease = 5 * time.Second
	// late is how long after the lease's end the next one may have to wait: the
	// cluster looks at leases now and then, and lockersh has renewed it just before. That
	// is 3 s on a machine that has nothing else to do.
	late = 10 * time.Second
	// elected is how much longer it takes when a leader has to be elected.
	elected = 5 * time.Second
)

// family is what runs under a lock: the command, which is a shell, and processes
// that no signal but SIGKILL ends. Each is as hard to find as can be.
var family = members{
	"session":    `setsid -f "$B" alive "$D/session" 60s`,         // an orphan, too
	"unmarked":   `setsid -f env -i "$B" alive "$D/unmarked" 60s`, // nothing in its environment
	"closed":     `setsid -f "$B" alive "$D/closed" 60s bare`,     // nothing open
	"orphan":     `( "$B" alive "$D/orphan" 60s & )`,
	"grandchild": `( "$B" alive "$D/grandchild" 60s; : ) &`,
	"child":      `"$B" alive "$D/child" 60s &`,
}

// strangers have none of what ties them to the lock for the cluster to see.
var strangers = members{
	"closed": `setsid -f "$B" alive "$D/closed" 60s bare`,
	"second": `"$B" alive "$D/second" 60s bare &`,
}

// members are lines of a shell that start one process each, with their names.
type members map[string]string

func (m members) script() string {
	lines := []string{"B=$1 D=$2"}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, m[name])
	}
	return strings.Join(append(lines, "wait"), "\n")
}

// With a lease, whatever the command has started is dead before anybody else gets
// the lock, and somebody does: when lockersh can't renew it, when it can't act, and
// when it has gone.
func TestALeaseEndsAfterAllThatItIsFor(t *testing.T) {
	if !inside(t, syscall.CLONE_NEWNET) {
		return
	}
	beat(t)
	f := start(t, farm.Options{Servers: 3, Agents: 1, Hosts: true})
	lead := leader(t, f)
	followers := f.Followers(lead)
	cut, other, stopped := followers[0], followers[1], f.Nodes[3] // an agent
	// All these nodes see the same processes, as no two hosts do. What sees a death asks
	// the servers for anchors, so the holders that nodes see are on a server.
	t.Run("group", func(t *testing.T) {
		for _, c := range []leaseTest{
			{name: "host_cut", on: cut, waits: other, alone: true, act: func(*holder) error { return cut.Cut() }, code: 76, says: "lost the lock"},
			{name: "node_stopped", on: stopped, waits: lead, alone: true, act: func(*holder) error { return stopped.Signal(syscall.SIGSTOP) }, code: 76, says: "lost the lock"},
			{name: "lockersh_stopped", on: other, waits: lead, act: func(h *holder) error { return h.Process.Signal(syscall.SIGSTOP) }},
			{name: "lockersh_stopped_unseen", on: lead, waits: other, alone: true, act: func(h *holder) error { return syscall.Kill(h.pid, syscall.SIGSTOP) }},
			{name: "lockersh_killed", on: other, waits: lead, act: func(h *holder) error { return h.Process.Kill() }, code: 137},
			{name: "guard_killed", on: other, waits: lead, act: killGuard, code: 76, says: "its guard was killed"},
			{name: "lockersh_stopped_strangers", on: other, waits: lead, of: strangers, act: func(h *holder) error { return h.Process.Signal(syscall.SIGSTOP) }},
			{name: "lockersh_killed_strangers", on: other, waits: lead, of: strangers, act: func(h *holder) error { return h.Process.Kill() }, code: 137},
			{name: "guard_killed_strangers", on: other, waits: lead, of: strangers, act: killGuard, code: 76, says: "its guard was killed"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t)
			})
		}
	})
	must(t, stopped.Signal(syscall.SIGCONT))
	must(t, cut.Heal())
	ready(t, f)
	// The clock by which leases end stands still until there is another leader.
	lead = leader(t, f)
	c := leaseTest{
		name: "leader_cut", on: lead, waits: stopped, alone: true, elects: true,
		act: func(*holder) error { return lead.Cut() }, code: 76, says: "lost the lock",
	}
	t.Run(c.name, c.run)
}

// lockersh is killed at moments around that at which it gets the lock and the command
// begins. Neither the command nor what it has started is alive when the next one
// begins, nor begins later.
func TestKilledAroundItsGrant(t *testing.T) {
	const kills = 30
	f := start(t, farm.Options{Servers: 3})
	for _, c := range []struct {
		name   string
		queued bool // behind a lock that is released then, and before the next one
		lease  bool
	}{
		{"from_its_start", false, false},
		{"from_the_release", true, false},
		{"from_the_release_with_a_lease", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			begun, least := 0, time.Duration(math.MaxInt64)
			var span time.Duration // in which it gets as far as the command, and a little more
			for i := range kills {
				at, lock, dir := f.Nodes[i%3], fmt.Sprintf("%s%d-%d", c.name, i, os.Getpid()), t.TempDir()
				args := []string{lockersh, "--dhost", at.Host, "--port", fmt.Sprint(at.Port), "--lock", lock}
				// What it starts has the anchor, and ends by itself: without a lease nobody ends it.
				script := `setsid -f "$1" alive "$2/session" 0.1s; exec "$1" alive "$2/command" 60s`
				if c.lease {
					args = append(args, "--lease", lease.String())
					script = `setsid -f "$1" alive "$2/closed" 60s bare; ` + script
				}
				args = append(args, "--", "sh", "-c", script, "sh", beat(t), dir)

				var n *next
				kill := func(sh *command, from time.Duration) {
					if i == 0 {
						await(t, granted, "the command", func() error {
							_, err := os.Stat(filepath.Join(dir, "command"))
							return err
						})
						span = max(30*time.Millisecond, 3*(bootTime(t)-from)/2)
					} else {
						time.Sleep(from + span*time.Duration(i-1)/(kills-2) - bootTime(t))
					}
					sh.kill()
				}
				if c.queued {
					first := hello(t, at.Client())
					must(t, first.lock("first", lock, granted))
					sh := startProgram(t, at, args...)
					awaitWaiters(t, at, lock, 1)
					n = startNext(t, f.Nodes[(i+1)%3], lock, dir)
					awaitWaiters(t, at, lock, 2)
					from := bootTime(t)
					must(t, first.unlock("first", lock, granted))
					kill(sh, from)
				} else {
					from := bootTime(t)
					kill(startProgram(t, at, args...), from)
					n = startNext(t, f.Nodes[(i+1)%3], lock, dir)
				}
				if margin := n.margin(t, dir, n.began(t)); margin < math.MaxInt64 {
					begun, least = begun+1, min(least, margin)
				}
			}
			t.Logf("%d of %d commands had begun, killed within %v; the next one began %v after the last sign of life at least", begun, kills, span, least)
			if begun == kills {
				t.Error("no kill came before the command")
			}
		})
	}
}

// leaseTest is one way to lose a lock with a lease.
type leaseTest struct {
	name      string
	on, waits *farm.Node
	// alone puts the holder where no node but its own sees its processes, and that
	// one does not either: as on a host that is down, the lease alone counts.
	alone  bool
	of     members // family if nil
	act    func(*holder) error
	code   int    // exit status of lockersh; 0 if it does not end by itself
	says   string // what it says
	elects bool
}

func (c leaseTest) run(t *testing.T) {
	lock := fmt.Sprintf("%s-%d", c.name, os.Getpid())
	h := startFamily(t, c, lock)
	n := startNext(t, c.waits, lock, h.dir)
	awaitWaiters(t, c.waits, lock, 1)
	acted := bootTime(t)
	must(t, c.act(h))
	began := n.began(t)
	bound := lease + late
	if c.elects {
		bound += elected
	}
	if took := began - acted; took > bound {
		t.Errorf("the next one began after %v, want at most %v", took, bound)
	}
	margin := n.margin(t, h.dir, began)
	t.Logf("%s: the next one began %v after the fault, %v after the last sign of life", c.name, began-acted, margin)
	if c.code == 0 {
		return
	}
	err := h.Wait()
	if code := farm.ExitCode(h.ProcessState); code != c.code || !strings.Contains(h.log.String(), c.says) {
		t.Errorf("lockersh: %v, %q; want status %d and %q", err, h.log.String(), c.code, c.says)
	}
}

// holder is a lockersh that runs a family.
type holder struct {
	*command
	lock string
	dir  string // the family's
	pid  int    // of lockersh itself
}

func startFamily(t *testing.T, c leaseTest, lock string) *holder {
	t.Helper()
	if c.of == nil {
		c.of = family
	}
	h := &holder{lock: lock, dir: t.TempDir()}
	args := []string{
		lockersh, "--dhost", c.on.Host, "--port", fmt.Sprint(c.on.Port), "--lease", lease.String(), "--lock", lock,
		"--", "sh", "-c", c.of.script(), "sh", beat(t), h.dir,
	}
	if c.alone {
		// The shell is there to be the parent of orphans, as init is.
		args = append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", `"$@"; exit $?`, "sh"}, args...)
	}
	h.command = startProgram(t, c.on, args...)
	await(t, granted, "the command and all that it starts", func() error {
		for name := range c.of {
			if _, err := os.Stat(filepath.Join(h.dir, name)); err != nil {
				return fmt.Errorf("%w: lockersh says %q", err, h.log.String())
			}
		}
		return nil
	})
	h.pid = find(t, lockersh, lock)
	return h
}

// startProgram is for what has its own arguments.
func startProgram(t *testing.T, at *farm.Node, args ...string) *command {
	t.Helper()
	p := exec.Command(args[0], args[1:]...)
	p.Env = farm.Environ()
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.WaitDelay = drain
	sh := &command{process: &process{Cmd: p}}
	p.Stdout, p.Stderr = &sh.log, &sh.log
	must(t, at.Within(p.Start))
	t.Cleanup(sh.kill)
	return sh
}

// killGuard kills the process that guards the lease.
func killGuard(h *holder) error {
	pid, err := search("job-guard", h.lock)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	return err
}

func find(t *testing.T, name, text string) int {
	t.Helper()
	pid, err := search(name, text)
	must(t, err)
	return pid
}

// search finds the one process that is called so and has the text among its arguments.
func search(name, text string) (pid int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(b), name+"\x00") || !strings.Contains(string(b), text) {
			continue
		}
		if pid != 0 {
			return 0, fmt.Errorf("two processes %s with %s", name, text)
		}
		pid, err = strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return 0, err
		}
	}
	if pid == 0 {
		return 0, fmt.Errorf("no process %s with %s", name, text)
	}
	return pid, nil
}

// next is a lockersh that waits for a lock and looks then who lives.
type next struct {
	*command
	alive []string // of the family, when it began
}

// stay is how long the next one looks for processes that begin too late.
const stay = 50 * time.Millisecond

func startNext(t *testing.T, at *farm.Node, lock, dir string) *next {
	t.Helper()
	n := &next{command: startProgram(t, at, lockersh, "--dhost", at.Host, "--port", fmt.Sprint(at.Port), "--lock", lock,
		"--", beat(t), "next", dir, stay.String())}
	return n
}

func awaitWaiters(t *testing.T, at *farm.Node, lock string, many int) {
	t.Helper()
	await(t, granted, fmt.Sprintf("%d to wait for %s", many, lock), func() error {
		text, err := ask(at.Client(), "proto 2\nHOLDS", granted)
		if err != nil {
			return err
		}
		found := 0
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "waiter ") && strings.Contains(line, `"`+lock+`"`) {
				found++
			}
		}
		if found != many {
			return fmt.Errorf("%d of them in %q", found, text)
		}
		return nil
	})
}

// began waits for the end of the next one, and returns when it began. How its own
// lockersh ends is not what is asked here.
func (n *next) began(t *testing.T) (at time.Duration) {
	t.Helper()
	timer := time.AfterFunc(lease+late+elected+granted, func() { _ = n.Process.Kill() })
	err := n.Wait()
	timer.Stop()
	for line := range strings.Lines(n.log.String()) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "began":
			ns, err := strconv.ParseInt(rest, 10, 64)
			must(t, err)
			at = time.Duration(ns)
		case "alive":
			n.alive = append(n.alive, rest)
		case "beat:":
			t.Errorf("the next one: %q", line)
		}
	}
	if at == 0 {
		t.Fatalf("the next one has not begun: %v, %q", err, n.log.String())
	}
	return at
}

// margin is the time from the last sign of life of any process until the next one
// began, none if there were no processes.
func (n *next) margin(t *testing.T, dir string, began time.Duration) time.Duration {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	least := time.Duration(math.MaxInt64)
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(t, err)
		if len(b) != 8 {
			continue // it was killed before the first
		}
		m := began - time.Duration(binary.NativeEndian.Uint64(b))
		if least = min(least, m); m <= 0 {
			t.Errorf("%s was alive %v after the next one had begun", filepath.Base(file), -m)
		}
	}
	if len(n.alive) > 0 {
		t.Errorf("alive when the next one began: %q", n.alive)
	}
	return least
}

func bootTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	return time.Duration(ts.Nano())
}

// beat is the program in testdata, built once, without the race detector: it has
// to begin at once.
func beat(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(lockerd), "beat")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if out, err := exec.Command("go", "build", "-o", path, "./testdata/beat").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}
