package systest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/systest/farm"
)

// cutsEnv is how many group snapshots are taken: a few by default.
const cutsEnv = "SYSTEST_CUTS"

func number(name string, usual int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return usual
}

// site is three nodes with executors and an agent without, each on a host of its own as
// far as it can tell: its network, its name, and its own file system at one and the
// same place.
type site struct {
	t       *testing.T
	farm    *farm.Farm
	dir     string    // in memory
	data    string    // where each node sees its own volume
	volumes []*volume // of n1, n2 and n3
	kept    *volume   // seen by all, and protected
	disks   *volume   // with the nodes' own data
	some    string    // mounted on n1 and n3 alone
	cgroups bool      // each node sees one of its own at dir/cg
}

func newSite(t *testing.T) *site {
	t.Helper()
	ownProc(t)
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"))
	s := &site{t: t, dir: "/run/site", data: "/run/site/data", some: "/run/site/some"}
	for _, d := range []string{s.dir, s.data, s.some, s.dir + "/cg", s.dir + "/hooks", s.dir + "/guards"} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.Mkdir(s.dir+"/mem", 0o755))
	must(t, unix.Mount("tmpfs", s.dir+"/mem", "tmpfs", 0, ""))
	for i, kind := range []string{"ext4", "xfs", "ext4"} {
		size := int64(32 << 20)
		if kind == "xfs" {
			size = 300 << 20 // the least that mkfs.xfs takes
		}
		s.volumes = append(s.volumes, newVolume(t, s.dir, fmt.Sprint("v", i+1), kind, size))
	}
	s.kept = newVolume(t, s.dir, "kept", "ext4", 16<<20)
	s.disks = newVolume(t, s.dir, "disks", "ext4", 512<<20)
	must(t, os.WriteFile(s.dir+"/hooks/10-note", []byte("#!/bin/sh\necho $1 $LOCKERD_ACTION $LOCKERD_TARGETS >>"+s.hooked()+"\n"), 0o755))
	s.cgroups = s.makeCgroups()
	t.Setenv("TMPDIR", s.disks.dir)
	s.farm = start(t, farm.Options{Servers: 3, Agents: 1, Hosts: true, Run: s.dir + "/guards", Wrap: s.wrap, Args: []string{
		"--protect", s.kept.dir, "--hook-timeout", "10s",
	}})
	return s
}

// hooked is what the hooks have written.
func (s *site) hooked() string { return s.dir + "/hooked" }

// wrap gives a node its own mounts. The agent has no executors.
func (s *site) wrap(name string) []string {
	script := `exec "$@"`
	if i := slices.Index([]string{"n1", "n2", "n3"}, name); i >= 0 {
		script = "mount --bind " + s.volumes[i].dir + " " + s.data + "; export LOCKERD_EXECUTORS=procs,fs LOCKERD_HOOKS=" + s.dir + "/hooks; " + script
		if name != "n2" {
			script = "mount --bind " + s.volumes[i].dir + " " + s.some + "; " + script
		}
		if s.cgroups {
			script = "mount --bind " + s.cgroup(name) + " " + s.dir + "/cg; " + script
		}
	}
	return []string{"unshare", "--mount", "sh", "-ec", script, "sh"}
}

func (s *site) cgroup(node string) string {
	return filepath.Join(cgroupRoot(), fmt.Sprintf("systest-%d-%s", time.Now().Year(), node)) + "-" + s.id()
}

// id tells this site's cgroups from those of others.
func (s *site) id() string {
	link, err := os.Readlink("/proc/self/ns/net")
	must(s.t, err)
	return strings.Trim(strings.TrimPrefix(link, "net:"), "[]")
}

// cgroupRoot is where cgroups of version 2 are; empty if nowhere.
func cgroupRoot() string {
	for _, d := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var s unix.Statfs_t
		if unix.Statfs(d, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
			return d
		}
	}
	return ""
}

func (s *site) makeCgroups() bool {
	if cgroupRoot() == "" {
		return false
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		dir := s.cgroup(n)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return false // read-only, as in a container
		}
		s.t.Cleanup(func() { _ = os.Remove(dir) })
	}
	return true
}

// node is one of the site, by its name.
func (s *site) node(name string) *farm.Node {
	i := slices.IndexFunc(s.farm.Nodes, func(n *farm.Node) bool { return n.Name == name })
	return s.farm.Nodes[i]
}

// command is a lockctl on a node's host. CLI arguments are words.
func (s *site) command(node string, words ...string) *exec.Cmd {
	n := s.node(node)
	c := exec.CommandContext(s.t.Context(), lockctl, words...)
	c.Env = append(farm.Environ(), "LOCKERD_ADMIN="+n.Admin(), "LOCKERD_HTTP="+n.HTTP(), "PATH="+filepath.Dir(lockctl)+":"+os.Getenv("PATH"))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// run is its exit status and what it printed.
func (s *site) run(node string, words ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	return finished(s.t, s.command(node, words...), s.node(node))
}

func finished(t *testing.T, c *exec.Cmd, on *farm.Node) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	must(t, on.Within(c.Start))
	_ = c.Wait() // its exit status says it
	return farm.ExitCode(c.ProcessState), out.String(), errs.String()
}

// expect runs lockctl and looks at its exit status and at what it says.
func (s *site) expect(code int, pattern, node string, words ...string) (stdout string) {
	s.t.Helper()
	got, out, errs := s.run(node, words...)
	if got != code || !regexp.MustCompile(pattern).MatchString(out+errs) {
		s.t.Errorf("lockctl %s: exit status %d, want %d and %q:\n%s%s", strings.Join(words, " "), got, code, pattern, out, errs)
	}
	return out
}

// moving wants all volumes to be written to at once.
func (s *site) moving(why string) {
	s.t.Helper()
	for _, v := range append(slices.Clone(s.volumes), s.kept, s.disks) {
		if _, err := v.written(10 * time.Second); err != nil {
			s.t.Fatalf("%s: %v", why, err)
		}
	}
}

const all = "n1,n2,n3"

func TestFreezeOnNodes(t *testing.T) {
	s := onSite(t)
	if s == nil {
		return
	}
	t.Run("snapshot", s.with((*site).snapshots))
	t.Run("processes", s.with((*site).processes))
	t.Run("cgroups", s.with((*site).groupOfCgroups))
	t.Run("refused", s.with((*site).refused))
	t.Run("lasting", s.with((*site).lasting))
	t.Run("lock", s.with((*site).underLock))
	t.Run("told", s.with((*site).told))
	t.Run("stopped", s.with((*site).stopped))
	t.Run("broken_off", s.with((*site).brokenOff))
}

// onSite runs the test in namespaces of its own, where it has a site.
func onSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("freezing takes root")
	}
	var files []*os.File
	if os.Getenv(insideEnv) == "" {
		files = []*os.File{startRescuer(t)}
	}
	if n := number(cutsEnv, 0) + byHand(); n > 0 {
		insideTime = time.Hour // by hand
	}
	if !inside(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID, files...) {
		return nil
	}
	unix.CloseOnExec(rescueFD)
	return newSite(t)
}

func (s *site) with(f func(*site)) func(*testing.T) {
	return func(t *testing.T) {
		on := *s
		on.t = t
		f(&on)
		if !t.Failed() {
			on.moving("afterwards")
		}
	}
}

const recordsFile = "records"

// writers append numbered records, one after the other, each on its node's volume,
// under one lock.
type writers struct {
	last atomic.Int64 // record that was written
	stop context.CancelFunc
	done sync.WaitGroup
}

func (s *site) write() *writers {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writers{stop: cancel}
	for i, v := range s.volumes {
		f, err := os.OpenFile(filepath.Join(v.dir, recordsFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(s.t, err)
		l, err := client.New(client.Options{
			Hosts: []string{s.farm.Nodes[i].Client()}, Locks: []string{"records"}, User: fmt.Sprint("writer", i), HoldLimit: client.NoLimit,
		})
		must(s.t, err)
		w.done.Go(func() {
			defer f.Close()
			defer l.Close()
			for ctx.Err() == nil {
				if l.Lock(ctx) != nil {
					continue
				}
				n := w.last.Load() + 1 // nobody else does this now
				if _, err := fmt.Fprintln(f, n); err == nil {
					w.last.Store(n)
				}
				_ = l.Unlock(context.Background())
			}
		})
	}
	return w
}

// end waits for them: nothing must be frozen.
func (w *writers) end() {
	w.stop()
	w.done.Wait()
}

// snapshots copies three devices, and wants each time that the copies are of one moment:
// if a record is there, all before it are.
func (s *site) snapshots() {
	w := s.write()
	defer w.end()
	script := ""
	for i, v := range s.volumes {
		script += fmt.Sprintf("cp --sparse=always %s %s/copy%d; ", v.image, s.dir, i)
	}
	rounds := number(cutsEnv, 3)
	for round := range rounds {
		from := w.last.Load()
		await(s.t, 20*time.Second, "records", func() error {
			if w.last.Load() < from+20 {
				return errors.New("too few")
			}
			return nil
		})
		before := w.last.Load()
		node := s.farm.Nodes[round%3].Name
		code, out, errs := s.run(node, "fsfreeze", "--verbose", "--node", all, s.data, "--", "sh", "-ec", script)
		if code != 0 {
			s.t.Fatalf("round %d: exit status %d: %s%s", round, code, out, errs)
		}
		found := map[int64]int{}
		last := int64(0)
		for i, v := range s.volumes {
			for _, line := range strings.Fields(v.copied(s.t, fmt.Sprintf("%s/copy%d", s.dir, i))) {
				n, err := strconv.ParseInt(line, 10, 64)
				must(s.t, err)
				found[n]++
				last = max(last, n)
			}
		}
		if last < before || int64(len(found)) != last {
			s.t.Fatalf("round %d: %d of the %d records are in the copies; %d had been written before", round, len(found), last, before)
		}
		for n, times := range found {
			if times != 1 {
				s.t.Fatalf("round %d: record %d is there %d times", round, n, times)
			}
		}
		s.t.Logf("round %d: records 1 to %d of %d written before the command: %s", round, last, before, lastLine(errs))
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// sleeper is a process with a child.
func (s *site) sleeper() (parent, child string) {
	s.t.Helper()
	c := exec.Command("sh", "-c", "sleep 1000 & wait")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	must(s.t, c.Start())
	s.t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		_ = c.Wait()
	})
	pid := c.Process.Pid
	await(s.t, 10*time.Second, "a child", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if child = strings.TrimSpace(string(b)); err != nil || child == "" {
			return fmt.Errorf("none: %w", err)
		}
		return nil
	})
	return strconv.Itoa(pid), child
}

// state is that of a process, the third word of proc_pid_stat(5).
func state(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return err.Error()
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// show prints the states of processes.
func show(pids ...string) string {
	return "for p in " + strings.Join(pids, " ") + "; do sed 's/.*) \\(.\\).*/\\1/' /proc/$p/stat; done"
}

func (s *site) processes() {
	parent, child := s.sleeper()
	other, _ := s.sleeper()
	both := show(parent, child, other)
	for _, c := range []struct{ target, pid, want string }{
		{"--tree", parent, "T\nT\nS\n"},
		{"--session", parent, "T\nT\nS\n"},
		{"--pid", child + "," + other, "S\nT\nT\n"},
	} {
		code, out, errs := s.run("n2", "freeze", "--node", "n1", c.target, c.pid, "--", "sh", "-c", both+"; exit 7")
		if code != 7 || out != c.want {
			s.t.Errorf("%s: exit status %d, states %q, want 7 and %q: %s", c.target, code, out, c.want, errs)
		}
		for _, pid := range []string{parent, child, other} {
			if st := state(pid); st != "S" && st != "R" { // who has just been woken runs
				s.t.Errorf("%s: process %s is in state %s afterwards", c.target, pid, st)
			}
		}
	}
	s.expect(1, "n1: .*no process 999999999", "n2", "freeze", "--node", "n1", "--pid", "999999999", "--", "true")
	s.expect(143, "", "n2", "freeze", "--node", "n1", "--pid", parent, "--", "sh", "-c", "kill $$")
}

// A cgroup on each of two nodes, all or none.
func (s *site) groupOfCgroups() {
	if !s.cgroups {
		s.t.Skip("there is no cgroup of version 2 to write to")
	}
	events := ""
	for _, n := range []string{"n1", "n2", "n3"} {
		c := exec.Command("sleep", "1000")
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(s.t, c.Start())
		s.t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
		must(s.t, os.WriteFile(s.cgroup(n)+"/cgroup.procs", []byte(strconv.Itoa(c.Process.Pid)), 0o600))
		events += " " + s.cgroup(n) + "/cgroup.events"
	}
	look := []string{"sh", "-c", "grep -h frozen" + events}
	words := append([]string{"freeze", "--node", "n1,n2", "--cgroup", s.dir + "/cg", "--"}, look...)
	if _, out, errs := s.run("n3", words...); out != "frozen 1\nfrozen 1\nfrozen 0\n" {
		s.t.Errorf("%s%s", out, errs)
	}
	if out, err := exec.Command(look[0], look[1:]...).Output(); string(out) != "frozen 0\nfrozen 0\nfrozen 0\n" {
		s.t.Errorf("afterwards: %s, %v", out, err)
	}
}

// The whole machine stands still, but for lockctl, its command, the node, and whom these
// were started by.
func TestFreezeMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("freezing takes root")
	}
	if !inside(t, unix.CLONE_NEWNS|unix.CLONE_NEWPID) {
		return
	}
	ownProc(t)
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"))
	f := start(t, farm.Options{Run: "/run", Args: []string{"--executors", "procs"}})
	s := &site{t: t, farm: f}
	parent, child := s.sleeper()
	// lockctl has an ancestor other than this first process, which nobody can stop.
	c := s.command("n1")
	c.Path, c.Args = "/bin/sh", []string{"sh", "-c", "lockctl freeze --node n1 --machine -- sh -c '" +
		strings.ReplaceAll(show(parent, child, "$PPID", "$$", strconv.Itoa(f.Nodes[0].PID())), "'", `'"'"'`) + "'; exit $?"}
	code, out, errs := finished(t, c, f.Nodes[0])
	states := strings.Fields(out)
	if code != 0 || len(states) != 5 || states[0] != "T" || states[1] != "T" || slices.Contains(states[2:], "T") {
		t.Errorf("exit status %d, states %q: %s", code, states, errs)
	}
	for _, pid := range []string{parent, child} {
		if st := state(pid); st != "S" {
			t.Errorf("process %s is in state %s afterwards", pid, st)
		}
	}
}

func (s *site) refused() {
	at := func(words ...string) []string { return append([]string{"fsfreeze", "--node"}, words...) }
	for name, c := range map[string]struct {
		want  string
		words []string
	}{
		"tmpfs":         {"n1: .*not support", at("n1", s.dir+"/mem")},
		"not_mounted":   {"n1: .*not a mount point", at("n1", s.data+"/..")},
		"no_directory":  {"n1: .*no such file", at("n1", "/nowhere")},
		"root":          {"n1: .*must not be frozen", at("n1", "/")},
		"own_data":      {"n[123]: .*must not be frozen", at(all, s.disks.dir)},
		"protected":     {"n2: .*must not be frozen", at("n2", s.kept.dir)},
		"unknown_node":  {"n9", at("n1,n9", s.data)},
		"off":           {"a1: executors are off|executors are off on a1", at("a1", s.data)},
		"one_of_group":  {"n2: ", at(all, s.some)},
		"one_is_off":    {"a1", at("n1,n2,n3,a1", s.data)},
		"all_and_one":   {"a1", []string{"fsfreeze", "--all-nodes", s.data}},
		"no_admin_tcp":  {"admin socket", append([]string{"--addr", s.node("n1").HTTP()}, at("n1", s.data)...)},
		"thaw_unknown":  {"no such order|no order", []string{"fsthaw", "4711"}},
		"thaw_over_tcp": {"admin socket", []string{"--addr", s.node("n1").HTTP(), "fsthaw", "--all"}},
	} {
		s.t.Run(name, func(t *testing.T) {
			on := *s
			on.t = t
			words := c.words
			if words[len(words)-1][0] == '/' {
				words = append(words, "--", "touch", s.dir+"/ran")
			}
			on.expect(1, "(?s)^lockctl: refused: .*("+c.want+")", "n3", words...)
			if _, err := os.Stat(s.dir + "/ran"); err == nil {
				t.Error("the command was run")
			}
		})
	}
	s.t.Run("not_root", func(t *testing.T) {
		on := *s
		on.t = t
		on.strangers()
	})
}

// strangers are refused by the rights of the socket, and where these were changed, by
// what the kernel says of them.
func (s *site) strangers() {
	n := s.node("n1")
	ask := func() (int, string) {
		s.t.Helper()
		c := s.command("n1", "fsfreeze", "--node", "n1", s.data, "--", "true")
		c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		code, _, errs := finished(s.t, c, n)
		return code, errs
	}
	programs := filepath.Dir(lockctl)
	must(s.t, os.Chmod(programs, 0o755))
	must(s.t, os.Chmod(filepath.Dir(n.Admin()), 0o755))
	if code, errs := ask(); code != 1 || !strings.Contains(errs, "is for root and for the user that lockerd runs as") {
		s.t.Errorf("by its rights: exit status %d: %s", code, errs)
	}
	must(s.t, os.Chmod(n.Admin(), 0o666))
	defer func() { must(s.t, os.Chmod(n.Admin(), 0o600)) }()
	if code, errs := ask(); code != 1 || !strings.Contains(errs, "orders are for administrators") {
		s.t.Errorf("by the kernel's word: exit status %d: %s", code, errs)
	}
	if code, out, errs := s.run("n1", "--admin", n.Admin(), "orders"); code != 0 {
		s.t.Errorf("to look is allowed: exit status %d: %s%s", code, out, errs)
	}
}

// lasting is a freeze without a command, and one whose time is up.
func (s *site) lasting() {
	id := strings.TrimSpace(s.expect(0, `^\d+\n$`, "n1", "fsfreeze", "--node", all, s.data))
	for _, v := range s.volumes {
		if !v.frozen() {
			s.t.Errorf("%s is not frozen", v.dir)
		}
	}
	s.expect(0, `(?s)`+id+` +fsfreeze +frozen .*n1 +frozen.*n2 +frozen.*n3 +frozen`, "n3", "orders")
	s.expect(1, "already frozen|frozen already|has frozen", "n2", "fsfreeze", "--node", "n2", s.data)
	s.expect(0, "Thawed: order "+id+" on n1 n2 n3", "n2", "fsthaw", id)
	s.moving("after fsthaw")
	s.expect(0, `(?s)`+id+` +fsfreeze +closed`, "n3", "orders", "--all")

	s.expect(76, "thawed too early: order [0-9]+: .*(time|deadline)", "n1", "fsfreeze", "--timeout", "1", "--node", all, s.data, "--", "sleep", "1000")
	s.moving("after the deadline")
}

// underLock is a freeze that has a lock, and ends with it.
func (s *site) underLock() {
	locked := s.expect(0, `(?m)^batch +order-[0-9a-f]+@n1\.test `, "n1", "fsfreeze", "--lock", "batch", "--node", "n2", s.data, "--", "lockctl", "locks")
	if strings.Contains(locked, "Nothing is held") {
		s.t.Error("it is not held")
	}
	s.expect(0, "Nothing is held", "n1", "locks", "--lock", "batch")

	s.expect(76, "thawed too early: order [0-9]+: .*(lock|hold)", "n1", "fsfreeze", "--lock", "batch", "--node", all, s.data, "--",
		"sh", "-c", "lockctl break batch --by somebody && sleep 1000")
	s.moving("after the lock was broken")

	id := strings.TrimSpace(s.expect(0, `^\d+\n$`, "n1", "fsfreeze", "--lock", "batch", "--node", "n2,n3", s.data))
	s.expect(0, `(?m)^batch +order-`, "n3", "locks", "--lock", "batch")
	s.expect(0, "Thawed: order "+id, "n3", "fsthaw", "--node", "n2")
	s.expect(0, "Nothing is held", "n1", "locks", "--lock", "batch")
}

// told is what others learn of an order: in the log, from hooks, and from events.
func (s *site) told() {
	must(s.t, os.RemoveAll(s.hooked()))
	var out syncBuffer
	watch := s.command("n3", "watch")
	watch.Stdout = &out
	must(s.t, s.node("n3").Within(watch.Start))
	defer func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
	}()
	// The watch shows nothing of its own when it is there.
	await(s.t, 20*time.Second, "the watch", func() error {
		s.run("n1", "freeze", "--node", "n1", "--pid", "999999999", "--", "true")
		if !strings.Contains(out.String(), "(node n1: ") && !strings.Contains(out.String(), "order-") {
			return errors.New(out.String())
		}
		return nil
	})
	must(s.t, os.RemoveAll(s.hooked()))
	s.expect(0, "", "n1", "fsfreeze", "--node", all, s.data, "--", "true")
	hooks, err := os.ReadFile(s.hooked())
	must(s.t, err)
	lines := strings.Split(strings.TrimSpace(string(hooks)), "\n")
	slices.Sort(lines)
	want := slices.Concat(slices.Repeat([]string{"freeze fsfreeze " + s.data}, 3), slices.Repeat([]string{"thaw fsfreeze " + s.data}, 3))
	if !slices.Equal(lines, want) {
		s.t.Errorf("the hooks were told %q, want %q", lines, want)
	}
	await(s.t, 20*time.Second, "events", func() error {
		for _, p := range []string{`order-opened .* fsfreeze on n1 n2 n3  by root@n1\.test\n`, `order-frozen .* fsfreeze on`, `order-ended .* fsfreeze on .*\(.*root@n1\.test.*\)`, `order-closed .* fsfreeze on`} {
			if !regexp.MustCompile(p).MatchString(out.String()) {
				return fmt.Errorf("no %q in:\n%s", p, out.String())
			}
		}
		return nil
	})
	for _, n := range s.farm.Nodes[:3] {
		if !regexp.MustCompile(`order.*root@n1\.test`).MatchString(n.Log()) {
			s.t.Errorf("%s does not log who asked", n.Name)
		}
	}
}

// syncBuffer may be read while a program writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
