package checkpoint

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// busyCRIU stands for CRIU at work: it makes what is in the box again and again, in several
// processes, and says when it has begun.
const busyCRIU = `#!/bin/sh
work() { while mkdir -p "$1/images"; echo x >"$1/images/x" || [ "$3" ]; do :; done 2>/dev/null; }
for i in 1 2 3; do work "$1" "$2" "$3" & done
: >"$2"
work "$1" "$2" "$3"
wait
`

// Nothing is left of the directory that CRIU was at work in, and nobody who would make it
// again, whoever was killed. CRIU, which has to put back the registers of the processes, is not as long
// as it gives up by itself.
func TestAKilledCRIULeavesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		kill     bool   // the keeper, by somebody
		stubborn string // CRIU does not give up
	}{{"early", false, ""}, {"keeper", true, ""}, {"early_stubborn", false, "yes"}, {"keeper_stubborn", true, "yes"}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			program, begun := filepath.Join(t.TempDir(), "criu"), filepath.Join(t.TempDir(), "begun")
			if err := os.WriteFile(program, []byte(busyCRIU), 0o700); err != nil {
				t.Fatal(err)
			}
			b, err := newBox(dir)
			if err != nil {
				t.Fatal(err)
			}
			k, err := startKeeper(b, program, []string{b.way, begun, c.stubborn}, false)
			if err != nil {
				t.Fatal(err)
			}
			group := k.cmd.Process.Pid
			await(t, "it to begin", func() bool { return isThere(begun) })
			k.patience = time.Minute
			if c.stubborn != "" {
				k.patience = 100 * time.Millisecond
			}
			if c.kill {
				if err := k.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			k.end(!c.kill)
			if s, ok := k.cmd.ProcessState.Sys().(syscall.WaitStatus); !c.kill && c.stubborn == "" && (!ok || !s.Exited()) {
				t.Errorf("CRIU gave up, and its keeper ended with %v", k.cmd.ProcessState)
			}
			noBoxes(t, dir)
			all, err := readTable()
			if err != nil {
				t.Fatal(err)
			}
			for pid, p := range all {
				if p.group == group && p.lives() {
					t.Errorf("process %d works on", pid)
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		})
	}
}

// Who has asked for a checkpoint may be killed while CRIU is at work. The keeper, which has
// nobody to tell then how that ended, removes the directory all the same.
func TestADeadRequesterLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, goOn := filepath.Join(t.TempDir(), "criu"), filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nread -r never <\"$1\"\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(goOn, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := newBox(dir)
	if err != nil {
		t.Fatal(err)
	}
	k, err := startKeeper(b, program, []string{goOn}, false)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(k.status, k.life) // what the kernel does for the dead
	f, err := os.OpenFile(goOn, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := k.cmd.Wait(); err != nil {
		t.Error("the keeper: ", err)
	}
	noBoxes(t, dir)
	_ = b.lock.Close()
}

// isThere says whether there is a file.
func isThere(path string) bool { _, err := os.Stat(path); return err == nil }

// A preflight that is killed leaves what the next one removes, and no process.
func TestAKilledPreflightLeavesNothing(t *testing.T) {
	t.Parallel()
	need(t)
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=preflight", "TMPDIR="+dir, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	probe := 0
	await(t, "a probe", func() bool {
		for _, pid := range tree(cmd.Process.Pid) {
			if text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); strings.HasPrefix(string(text), probeName) {
				probe = pid
			}
		}
		return probe != 0
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	await(t, "the probe to end", func() bool {
		p, err := readProcess(probe)
		return err != nil || !p.lives()
	})
	// What CRIU was doing ends by itself.
	await(t, "an empty directory", func() bool {
		Sweep(dir)
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	}, func() string {
		left, _ := filepath.Glob(dir + "/.*")
		return strings.Join(left, " ")
	})
}

// preflighter tries CRIU again and again.
func preflighter([]string) {
	c, err := Find(context.Background())
	for err == nil {
		err = c.Preflight(context.Background())
	}
	os.Exit(1)
}
