package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
)

// binDir has freezefs and thawfs.
var binDir string

func TestMain(m *testing.M) {
	freezer.AtGuard()
	var err error
	if binDir, err = os.MkdirTemp("", "freezefs"); err != nil {
		panic(err)
	}
	out, err := exec.Command("go", "build", "-o", binDir, ".", "../thawfs").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Printf("%v\n%s", err, out)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

func programs() (freezefs, thawfs string) {
	return filepath.Join(binDir, "freezefs"), filepath.Join(binDir, "thawfs")
}

// call runs a program and returns its exit status.
func call(t *testing.T, argv ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func must(t *testing.T, argv ...string) {
	t.Helper()
	if code, out, errs := call(t, argv...); code != 0 {
		t.Fatalf("%v: status %d\n%s%s", argv, code, out, errs)
	}
}

// newFS mounts a new ext4 where nobody else sees it. A timer thaws it, whatever
// becomes of the test.
func newFS(t *testing.T) (point string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("freezing takes root")
	}
	// The thread ends with the test, and what it starts lives in the same namespace.
	runtime.LockOSThread()
	if err := errors.Join(
		unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
	); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	t.Setenv("FREEZER_RUN", dir+"/freezer")
	point = dir + "/fs"
	if err := errors.Join(os.Mkdir(point, 0o755), os.WriteFile(dir+"/image", nil, 0o600), os.Truncate(dir+"/image", 16<<20)); err != nil {
		t.Fatal(err)
	}
	must(t, "mkfs.ext4", "-q", "-F", dir+"/image")
	must(t, "mount", "-o", "loop", dir+"/image", point)
	timer := exec.Command("sh", "-c", `while sleep 240; do fsfreeze -u "$0" || exit; done`, point)
	timer.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	timer.Dir = "/"
	if err := timer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _, _ = call(t, "fsfreeze", "-u", point)
		states, _ := freezer.List("")
		for _, s := range states {
			_ = syscall.Kill(s.Guard, syscall.SIGTERM)
		}
		until := time.Now().Add(time.Minute)
		for unix.Unmount(point, 0) == unix.EBUSY && time.Now().Before(until) {
			time.Sleep(5 * time.Millisecond)
		}
		_ = syscall.Kill(-timer.Process.Pid, syscall.SIGKILL)
		_ = timer.Wait()
	})
	return point
}

func TestFreezeAndThaw(t *testing.T) {
	point := newFS(t)
	freezefs, thawfs := programs()
	step := func(want int, said string, argv ...string) {
		t.Helper()
		code, out, errs := call(t, argv...)
		if code != want || !strings.Contains(out+errs, said) || strings.Count(out+errs, "\n") > 3 {
			t.Errorf("%v: status %d, want %d; said %q, want %q", argv, code, want, out+errs, said)
		}
	}
	step(0, point+": not frozen", freezefs, "-q", point)
	step(1, "not frozen", thawfs, point)
	step(1, "not frozen", thawfs, "--dry-run", point)
	step(0, point, freezefs, "--dry-run", point)
	step(0, "not frozen", freezefs, "-q", point)
	step(0, point+": frozen until 2", freezefs, "-t", "60", point)
	step(1, "by guard", freezefs, "-q", point)
	step(75, "already frozen", freezefs, "-t", "60", point)
	step(75, "already frozen", freezefs, "--dry-run", point)
	step(0, "would be thawed", thawfs, "--dry-run", point)
	step(0, point+": thawed", thawfs, point)
	step(0, "not frozen", freezefs, "-q", point)
	must(t, "umount", point) // at once: nobody has anything open
	must(t, "mount", "-o", "loop", filepath.Dir(point)+"/image", point)

	step(0, "frozen until it is thawed", freezefs, "--timeout=-1", point)
	step(0, "thawed", thawfs, point, point)
	must(t, "fsfreeze", "-f", point)
	step(1, "frozen, not by freezefs", freezefs, "-q", point)
	step(0, "thawed", thawfs, point)

	// Under the guard's hands, which then lets go of it.
	step(0, "frozen until it is thawed", freezefs, "-t", "-1", point)
	must(t, "fsfreeze", "-u", point)
	step(0, point+": not frozen", freezefs, "-q", point)
	step(1, "not frozen", thawfs, point)
	step(0, "frozen until it is thawed", freezefs, "-t", "-1", point)
	must(t, "fsfreeze", "-u", point)
	out, until := "", time.Now().Add(time.Minute)
	for ; out != point+": not frozen\n"; time.Sleep(10 * time.Millisecond) {
		if _, out, _ = call(t, freezefs, "-q", point); time.Now().After(until) {
			t.Fatalf("the guard does not let go: %q", out)
		}
	}
	must(t, "fsfreeze", "-f", point)
	step(1, "frozen, not by freezefs", freezefs, "-q", point)
	step(0, "thawed", thawfs, point)

	step(66, "not a mount point", freezefs, point+"/lost+found")
	step(66, "not a mount point", thawfs, point+"/lost+found")
	step(66, "not a mount point", freezefs, "-q", point+"/missing")
	step(69, "does not support", freezefs, "-q", "/proc")
	step(69, "does not support", freezefs, "/proc")
	step(77, "must not be frozen", freezefs, "/")
	step(77, "must not be frozen", freezefs, "--protect", point+"/data", point)
	t.Setenv("LOCKERD_DATA_DIR", point)
	step(77, "must not be frozen", freezefs, point)

	// The deadline, with nobody there any more who has asked for it.
	t.Setenv("LOCKERD_DATA_DIR", "")
	began := time.Now()
	step(0, "frozen", freezefs, "-t", "1", point)
	for code := 1; code != 0; time.Sleep(10 * time.Millisecond) {
		code, _, _ = call(t, freezefs, "-q", point)
		if time.Since(began) > time.Minute {
			t.Fatal("not thawed")
		}
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("thawed after %v", took)
	}
}

func TestGuardKilled(t *testing.T) {
	point := newFS(t)
	freezefs, thawfs := programs()
	_, out, _ := call(t, freezefs, "--json", point)
	var s freezer.State
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.Guard == 0 {
		t.Fatalf("%q: %v", out, err)
	}
	if s.Left < 30*time.Second || s.Left > time.Minute {
		t.Errorf("%v is left", s.Left)
	}
	_ = syscall.Kill(s.Guard, syscall.SIGKILL)
	for until := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		code, out, _ := call(t, freezefs, "-q", point)
		if code == 1 && strings.Contains(out, "was killed; thawfs thaws it") {
			break
		}
		if code != 1 || time.Now().After(until) {
			t.Fatalf("status %d, %q", code, out)
		}
	}
	must(t, thawfs, point)
	var states []freezer.FSState
	code, out, _ := call(t, freezefs, "-q", "--json", point)
	if err := json.Unmarshal([]byte(out), &states); err != nil || code != 0 || len(states) != 1 || states[0].Frozen {
		t.Errorf("status %d, %q: %v", code, out, err)
	}
}

// A signal may come before there is a guard.
func TestInterruptedAtOnce(t *testing.T) {
	point := newFS(t)
	o, err := parse([]string{point})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code := freeze(ctx, o); code != freezing.ExitTempFail {
		t.Errorf("status %d, want %d", code, freezing.ExitTempFail)
	}
	freezefs, _ := programs()
	if code, out, errs := call(t, freezefs, "-q", point); code != 0 {
		t.Errorf("status %d, %q, %q", code, out, errs)
	}
}

// Who is not told that something is frozen need not thaw it: so it is not frozen then.
// Who is not told that it was thawed is told so, and where.
func TestOutputLost(t *testing.T) {
	point := newFS(t)
	freezefs, thawfs := programs()
	sh := func(script string, args ...string) (code int, out, errs string) {
		return call(t, append([]string{"sh", "-c", script, "sh"}, args...)...)
	}
	for _, c := range []struct {
		code   int
		said   string
		script string
	}{
		{74, "no space left on device; nothing is frozen\n", `"$@" >/dev/full`},
		{74, "no space left on device; nothing is frozen\n", `"$@" --json >/dev/full`},
		{74, "it is closed; nothing is frozen\n", `"$@" >&-`},
		{74, "broken pipe; nothing is frozen\n", `mkfifo pipe; exec 5<>pipe 6>pipe 5<&-; rm pipe; exec "$@" >&6`},
		{77, "must not be frozen", `"$@" >` + point + `/log`},
		{77, "must not be frozen", `"$@" 2>` + point + `/log || { code=$?; cat ` + point + `/log >&2; exit $code; }`},
		{0, "", `"$@" --dry-run >` + point + `/log`},
	} {
		code, out, errs := sh("cd /dev/shm; "+c.script, freezefs, "-t", "60", point)
		if code != c.code || out != "" || !strings.Contains(errs, c.said) || strings.Count(errs, "\n") > 1+strings.Count(errs, "warning: ") {
			t.Errorf("%s: status %d, %q, %q", c.script, code, out, errs)
		}
		if code, out, _ := call(t, freezefs, "-q", point); code != 0 {
			t.Fatalf("%s: it is frozen: %q", c.script, out)
		}
	}

	// Nobody reads a full pipe: then a signal ends it, and the end of the time.
	for _, c := range []struct {
		code           int
		timeout, after string
		said           string
	}{
		{75, "60", `until "$1" -q "$4" >/dev/null; [ $? = 1 ]; do sleep 0.01; done; kill -TERM $p;`, "a signal came"},
		{75, "0", "", "the time was up"},
	} {
		t.Setenv("FREEZEFS_DEFAULT_TIMEOUT", "1")
		code, _, errs := sh(`cd /dev/shm; mkfifo pipe; exec 5<>pipe; rm pipe
dd if=/dev/zero bs=65536 count=1 >&5 2>/dev/null; "$@" >&5 & p=$!
`+c.after+` wait $p`, freezefs, "-t", c.timeout, point)
		if code != c.code || !strings.Contains(errs, c.said) {
			t.Errorf("full pipe: status %d, %q, want %d, %q", code, errs, c.code, c.said)
		}
		if code, out, _ := call(t, freezefs, "-q", point); code != 0 {
			t.Fatalf("full pipe: it is frozen: %q", out)
		}
	}

	for _, script := range []string{`"$@" >/dev/full`, `"$@" --json >/dev/full`, `"$@" >&-`} {
		must(t, freezefs, "-t", "60", point)
		if code, _, errs := sh(script, thawfs, point); code != 74 || !strings.Contains(errs, point) {
			t.Errorf("thawfs: %s: status %d, %q", script, code, errs)
		}
		if code, out, errs := sh(script, freezefs, "-q", point); code != 74 || strings.Count(errs, "\n") != 1 {
			t.Errorf("freezefs -q: %s: status %d, %q, %q", script, code, out, errs)
		}
		if code, out, _ := call(t, freezefs, "-q", point); code != 0 {
			t.Fatalf("it is frozen: %q", out)
		}
	}
}

// An error is one line, whatever the name.
func TestNameOfTwoLines(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may ask")
	}
	freezefs, thawfs := programs()
	name := t.TempDir() + "/a\nb"
	if err := os.Mkdir(name, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{freezefs, name}, {freezefs, "-q", name}, {freezefs, name + "/missing"}, {thawfs, name}, {thawfs, "--dry-run", name},
	} {
		code, out, errs := call(t, argv...)
		if code != 66 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, `a\nb`) {
			t.Errorf("%q: status %d, %q, %q", argv, code, out, errs)
		}
	}
}

func TestUsage(t *testing.T) {
	freezefs, thawfs := programs()
	for _, c := range []struct {
		code int
		said string
		argv []string
	}{
		{0, "Examples:", []string{freezefs, "--help"}},
		{0, "Examples:", []string{thawfs, "--help"}},
		{0, "Version: ", []string{freezefs, "--version"}},
		{0, "Version: ", []string{thawfs, "--version"}},
		{64, "no file system specified", []string{freezefs}},
		{64, "no file system specified", []string{thawfs}},
		{64, "is empty", []string{freezefs, ""}},
		{64, "is empty", []string{freezefs, "-q", "/", ""}},
		{64, "is empty", []string{freezefs, "--protect", "", "/x"}},
		{64, "is empty", []string{thawfs, ""}},
		{64, "--timeout soon", []string{freezefs, "-t", "soon", "/x"}},
		{64, "--timeout 3000000000", []string{freezefs, "-t", "3000000000", "/x"}},
		{64, "exclude each other", []string{freezefs, "-q", "--dry-run", "/x"}},
		{64, "--nonsense", []string{freezefs, "--nonsense", "/x"}},
		{64, "--nonsense", []string{thawfs, "--nonsense", "/x"}},
	} {
		code, out, errs := call(t, c.argv...)
		if code != c.code || !strings.Contains(out+errs, c.said) {
			t.Errorf("%v: status %d, want %d; %q", c.argv, code, c.code, out+errs)
		}
		for line := range strings.Lines(out + errs) {
			if len(line) > 101 {
				t.Errorf("%v: the line is too long: %q", c.argv, line)
			}
		}
	}
}

func TestNotRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to become nobody")
	}
	freezefs, thawfs := programs()
	for _, argv := range [][]string{{freezefs, "/x"}, {freezefs, "-q", "/"}, {freezefs, "--dry-run", "/"}, {thawfs, "/"}} {
		program, err := os.Open(argv[0])
		if err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		cmd := exec.Command("/proc/self/fd/3", argv[1:]...) // nobody may enter its directory
		cmd.ExtraFiles = []*os.File{program}
		cmd.Stderr = &errs
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		err = cmd.Run()
		_ = program.Close()
		if cmd.ProcessState.ExitCode() != 77 || !strings.Contains(errs.String(), "only root may") ||
			strings.Contains(errs.String(), "freeze\n") != (argv[0] == freezefs) {
			t.Errorf("%v: %v, %q", argv, err, errs.String())
		}
	}
}

// The first process of a pid namespace has to stay, as its guard ends with it.
func TestContainer(t *testing.T) {
	point := newFS(t)
	freezefs, thawfs := programs()
	inside := []string{"unshare", "--pid", "--fork", "--mount-proc", freezefs, "-t", "2", point}
	code, out, errs := call(t, inside...)
	if code != freezing.ExitUnsupported || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "--wait") {
		t.Errorf("status %d: %q, %q", code, out, errs)
	}
	code, out, errs = call(t, append(inside, "--wait", "--json")...)
	var s freezer.State
	if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil || s.Detached {
		t.Errorf("status %d: %q, %q", code, out, errs)
	}
	if code, out, _ := call(t, freezefs, "-q", point); code != 0 || strings.Contains(out, "though") {
		t.Errorf("it has not waited for the thaw: %q", out)
	}
	// A shell there that ends takes a guard with it, and thawfs does its work.
	must(t, "unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", `"$0" -t 20 "$1"; exit`, freezefs, point)
	if code, out, _ := call(t, freezefs, "-q", point); code != freezing.ExitFrozen || !strings.Contains(out, "which was killed; thawfs thaws it") {
		t.Errorf("status %d: %q", code, out)
	}
	must(t, thawfs, point)
}

// With --wait its end is the thaw, and others can end it.
func TestWait(t *testing.T) {
	point := newFS(t)
	freezefs, thawfs := programs()
	for _, c := range []struct {
		how  string
		end  func(*exec.Cmd, *freezer.State)
		want int
	}{
		{"thawfs", func(*exec.Cmd, *freezer.State) { must(t, thawfs, point) }, 0},
		{"a signal", func(cmd *exec.Cmd, _ *freezer.State) { _ = cmd.Process.Signal(syscall.SIGTERM) }, 0},
		{"its death", func(cmd *exec.Cmd, _ *freezer.State) { _ = cmd.Process.Kill() }, -1},
		{"the guard's death", func(_ *exec.Cmd, s *freezer.State) { _ = syscall.Kill(s.Guard, syscall.SIGKILL) }, freezing.ExitThawed},
	} {
		cmd := exec.Command(freezefs, "--wait", "--json", "-t", "-1", point)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var s freezer.State
		if err := json.NewDecoder(out).Decode(&s); err != nil {
			t.Fatal(err)
		}
		c.end(cmd, &s)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("after %s: status %d", c.how, got)
		}
		until := time.Now().Add(time.Minute)
		for code := 1; code != 0; time.Sleep(10 * time.Millisecond) {
			if code, _, _ = call(t, freezefs, "-q", point); time.Now().After(until) {
				t.Fatalf("after %s it is frozen", c.how)
			}
		}
	}
}

// What is mounted nowhere any more is thawed by the freeze's id.
func TestUnmountedLazily(t *testing.T) {
	point := newFS(t)
	freezefs, thawfs := programs()
	_, out, _ := call(t, freezefs, "--json", "-t", "-1", point)
	var s freezer.State
	if err := json.Unmarshal([]byte(out), &s); err != nil || !s.Detached {
		t.Fatalf("%q: %v", out, err)
	}
	must(t, "umount", "-l", point)
	if code, _, errs := call(t, thawfs, point); code != freezing.ExitNoTarget || !strings.Contains(errs, "thawfs --id "+s.ID) || strings.Count(errs, "\n") != 1 {
		t.Errorf("status %d: %q", code, errs)
	}
	if code, _, errs := call(t, thawfs, "--id", "1"); code != freezing.ExitNotFrozen {
		t.Errorf("status %d: %q", code, errs)
	}
	must(t, thawfs, "--id", s.ID)
	must(t, "mount", "-o", "loop", filepath.Dir(point)+"/image", point)
	if code, out, _ := call(t, freezefs, "-q", point); code != 0 {
		t.Errorf("it is still frozen: %q", out)
	}
}

// A directory for guards that is refused is not left behind.
func TestDirectoryRefused(t *testing.T) {
	point := newFS(t)
	freezefs, _ := programs()
	dir := filepath.Join(point, "run") // on a disk
	t.Setenv("FREEZER_RUN", dir)
	if code, _, errs := call(t, freezefs, point); code == 0 || !strings.Contains(errs, "FREEZER_RUN") {
		t.Errorf("status %d: %q", code, errs)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}
