package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// playContained freezes a file system for a while, detached, as the first process of a pid
// namespace, in whose end it ends. Arguments: the mount, the timeout, and the directory for
// journals.
func playContained(args []string) {
	timeout, err := time.ParseDuration(args[1])
	if err == nil {
		err = errors.Join(os.Setenv(dirVariable, args[2]), unix.Mount("proc", "/proc", "proc", 0, ""))
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	s, err := FreezeFS(context.Background(), args[0], timeout)
	fmt.Println("frozen", s.Guard, err)
	untilClosed()
	os.Exit(0)
}

// contained starts such a process, and returns it and the number of its guard when the file
// system is frozen.
func contained(t *testing.T, point string, timeout time.Duration, dir string) (a *actor, guard int) {
	t.Helper()
	before := guards(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=contained %s %v %s", roleVariable, point, timeout, dir))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	a = begin(t, cmd)
	if line := a.line(t); !strings.HasPrefix(line, "frozen ") || !strings.HasSuffix(line, "<nil>") {
		t.Fatal(line)
	}
	for _, pid := range guards(t) {
		if !slices.Contains(before, pid) {
			return a, pid
		}
	}
	t.Fatal("it has no guard")
	return nil, 0
}

// What the guard of a container leaves that ends with the container is thawed by whoever
// comes next, and at once where somebody watches.
func TestContainerEnds(t *testing.T) {
	needIsolation(t)
	for _, by := range []string{"Recover", "ThawFS", "Start", "Executor"} {
		point := newFS(t, "ext4")
		a, guard := contained(t, point, -1, Dir())
		if s := query(t, point); !s.Frozen || s.Lost || s.By == nil || s.By.Guard != guard || !s.By.Detached {
			t.Errorf("%s: %+v", by, s)
		}
		var x *Executor
		if by == "Executor" {
			x = must(NewExecutor(ExecutorConfig{FS: true}))
		}
		a.kill()
		switch by {
		case "Recover":
			if s := query(t, point); !s.Frozen || !s.Lost || s.By == nil {
				t.Errorf("%s: %+v", by, s)
			}
			if done, err := Recover(""); err != nil || len(done) != 1 || done[0].FileSystems != 1 {
				t.Errorf("%s: %+v, %v", by, done, err)
			}
		case "ThawFS":
			if err := ThawFS(t.Context(), point); err != nil {
				t.Errorf("%s: %v", by, err)
			}
		case "Start":
			start(t).Close()
		case "Executor":
			await(t, "the thaw", func() bool { return !frozenFS(t, point) })
			if err := x.Close(); err != nil {
				t.Errorf("%s: %v", by, err)
			}
		}
		if frozenFS(t, point) {
			t.Errorf("%s: still frozen", by)
		}
		await(t, "the guards' end", func() bool { return len(guards(t)) == 0 })
		cleanRun(t)
	}
}

// The guard of a container is one like others: what it holds nobody else freezes, and it
// can be asked to thaw.
func TestContainerHolds(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	_, guard := contained(t, point, -1, Dir())
	if _, err := FreezeFS(t.Context(), point, -1); !errors.Is(err, ErrAlreadyFrozen) || !strings.Contains(err.Error(), fmt.Sprintf("by guard %d", guard)) {
		t.Error(err)
	}
	if done, err := Recover(""); err != nil || len(done) != 0 || !frozenFS(t, point) {
		t.Errorf("%+v, %v", done, err)
	}
	if err := ThawFS(t.Context(), point); err != nil || frozenFS(t, point) {
		t.Error(err)
	}
	await(t, "the guard's end", func() bool { return len(guards(t)) == 0 })
	cleanRun(t)
}

// Nor is it stopped, wherever its journal is.
func TestContainerGuardRuns(t *testing.T) {
	needIsolation(t)
	elsewhere := t.TempDir()
	command(t, "mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", elsewhere)
	t.Cleanup(func() { command(t, "umount", elsewhere) })
	for _, dir := range []string{Dir(), elsewhere} {
		point := newFS(t, "ext4")
		a, guard := contained(t, point, -1, dir)
		if _, err := start(t).Freeze(t.Context(), Order{Targets: []Target{Processes(guard)}}); !errors.Is(err, ErrSelf) {
			t.Errorf("by its number: %v", err)
		}
		for _, target := range []Target{Tree(a.pid()), Machine()} {
			o := machine()
			o.Targets = []Target{target}
			g, r := freeze(t, o)
			if r.Processes == 0 || stateOf(a.pid()) != "T" || stateOf(guard) == "T" {
				t.Errorf("%v, %d processes: %s is stopped, and its guard is %s", target, r.Processes, stateOf(a.pid()), stateOf(guard))
			}
			if err := g.Thaw(); err != nil {
				t.Fatal(err)
			}
		}
		a.kill()
		if _, err := Recover(dir); err != nil || frozenFS(t, point) {
			t.Errorf("still frozen: %v", err)
		}
		await(t, "the guards' end", func() bool { return len(guards(t)) == 0 })
	}
}

// A cgroup with the guard of a container in it is refused.
func TestContainerGuardCgroup(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	a, guard := contained(t, point, -1, Dir())
	dir := newCgroup(t, a.pid(), guard)
	if _, err := start(t).Freeze(t.Context(), Order{Targets: []Target{Cgroup(dir)}}); !errors.Is(err, ErrSelf) {
		t.Error(err)
	}
	a.kill()
	if _, err := Recover(""); err != nil || frozenFS(t, point) {
		t.Errorf("still frozen: %v", err)
	}
}

// The processes of another pid namespace are left to it, and not what somebody freezes after
// the thaw of a file system.
func TestForeignJournal(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	f := must(openFS(must(readMounts()), point))
	defer f.close()
	victim := act(t, "sleepers 0")
	_ = syscall.Kill(victim.pid(), syscall.SIGSTOP)
	await(t, "a stopped process", func() bool { return stateOf(victim.pid()) == "T" })
	s := must(must(openProc()).stat(int32(victim.pid())))
	dir := must(openDir(Dir()))
	j := must(createJournal(dir, record{Boot: bootID(), PIDNS: 1, Guard: process{1, 1}, Requester: process{1, 1}}))
	if err := j.note(entry{kind: entryPID, pid: s.pid, start: s.start}, f.entry()); err != nil {
		t.Fatal(err)
	}
	_ = j.file.Close()
	if err := f.ioctl(fifreeze); err != nil {
		t.Fatal(err)
	}
	if done, err := Recover(""); err != nil || len(done) != 1 || done[0].String() != "1 file system" || frozenFS(t, point) {
		t.Errorf("%+v, %v", done, err)
	}
	still := strangersFreeze(t, point)
	if done, err := Recover(""); err != nil || len(done) != 0 {
		t.Errorf("again: %+v, %v", done, err)
	}
	if !still() || stateOf(victim.pid()) != "T" {
		t.Error("it has undone what is not its own")
	}
	rec, err := readRecord(must(os.Open(j.path)))
	if err != nil || rec.ID != j.rec.ID || len(rec.entries) != 1 || rec.entries[0].pid != s.pid {
		t.Errorf("its journal is now: %+v, %v", rec, err)
	}
	proc := must(openProc())
	defer proc.close()
	if !proc.populates(pidNamespace()) || proc.populates(1) {
		t.Error("it is not seen which pid namespaces have processes")
	}
}

// Where neither the mount nor the device can be seen nothing is said to be thawed, and the
// journal stays.
func TestRecoverOutOfSight(t *testing.T) {
	needIsolation(t)
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		s, err := FreezeFS(t.Context(), point, -1)
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(s.Guard, syscall.SIGKILL)
		await(t, "the guard's end", func() bool { return len(guards(t)) == 0 })
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleVariable+"=blind "+point)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		a := begin(t, cmd)
		if line := a.line(t); !strings.HasPrefix(line, "thaw the "+fstype+" of /dev/loop") {
			t.Errorf("%s: it says %q", fstype, line)
		}
		if left, _ := filepath.Glob(Dir() + "/*" + journalEnd); len(left) != 1 || !frozenFS(t, point) {
			t.Errorf("%s: journals: %v", fstype, left)
		}
		if done, err := Recover(""); err != nil || len(done) != 1 || done[0].FileSystems != 1 || frozenFS(t, point) {
			t.Errorf("%s: where it can be seen: %+v, %v", fstype, done, err)
		}
	}
}

// playBlind recovers where a file system and its device cannot be seen.
func playBlind(args []string) {
	if err := errors.Join(
		unix.Unmount(args[0], unix.MNT_DETACH),
		unix.Mount("tmpfs", "/dev", "tmpfs", 0, ""),
	); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	done, err := Recover("")
	fmt.Println(err, done)
	os.Exit(0)
}

// A guard that has no number in our pid namespace is asked to thaw all the same, and its end
// is noticed.
func TestUnseenGuard(t *testing.T) {
	needIsolation(t)
	for _, how := range []string{"thaw", "watch"} {
		point := newFS(t, "ext4")
		s, err := FreezeFS(t.Context(), point, -1)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleVariable+"=inner "+how+" "+point)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		a := begin(t, cmd)
		if how == "watch" {
			_ = syscall.Kill(s.Guard, syscall.SIGKILL)
		} else if line := a.line(t); line != "<nil>" {
			t.Error(line)
		}
		await(t, "the thaw from inside", func() bool { return !frozenFS(t, point) })
		await(t, "the guard's end", func() bool { return len(guards(t)) == 0 })
		cleanRun(t)
		a.kill()
	}
}

// playInner thaws a file system, or watches over the guards, in a pid namespace of its own.
func playInner(args []string) {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		panic(err)
	}
	if args[0] == "watch" {
		must(NewExecutor(ExecutorConfig{FS: true}))
	}
	fmt.Println("ready")
	if args[0] == "thaw" {
		fmt.Println(ThawFS(context.Background(), args[1]))
	}
	untilClosed()
	os.Exit(0)
}

func TestParseLock(t *testing.T) {
	got, ok := parseLock("3: FLOCK  ADVISORY  WRITE 4711 fe:1a:1403 0 EOF\n")
	if want := (fileLock{4711, unix.Mkdev(0xfe, 0x1a), 1403}); !ok || got != want {
		t.Errorf("%+v", got)
	}
	for _, other := range []string{
		"", "3: FLOCK  ADVISORY  READ 4711 fe:01:1403 0 EOF", "3: POSIX  ADVISORY  WRITE 4711 fe:01:1403 0 EOF",
		"3: -> FLOCK  ADVISORY  WRITE 4711 fe:01:1403 0 EOF", "3: FLOCK  ADVISORY  WRITE -1 fe:01:1403 0 EOF",
		"3: FLOCK  ADVISORY  WRITE 4711 <none>:0 0 EOF", "3: FLOCK  ADVISORY  WRITE 4711 fe:x1:1403 0 EOF",
	} {
		if l, ok := parseLock(other); ok {
			t.Errorf("%q: %+v", other, l)
		}
	}
}
