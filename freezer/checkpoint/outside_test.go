package checkpoint

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// outsideVariable is set where the leader of our session is outside of our pid namespace,
// as it is of what is started in a container without a session of its own.
const outsideVariable = "CHECKPOINT_TEST_OUTSIDE"

// liveOutside closes what is on mounts that are not of our namespace, and that CRIU does
// not find there.
func liveOutside() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	return unix.Dup2(int(null.Fd()), 0)
}

// What whoever asks has left open, and CRIU does not find, is not the host's fault.
func TestPreflightIsOfTheHost(t *testing.T) {
	t.Parallel()
	need(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.CommandContext(t.Context(), "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", program, "-test.run=^TestPreflight$")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = []*os.File{null, null} // of a mount that is not in the new namespace
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// What is of a session that began outside is refused in words that help; all else works
// there as anywhere.
func TestASessionFromOutside(t *testing.T) {
	c := need(t)
	if sid, err := unix.Getsid(0); err != nil || sid != 0 {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// It starts the program from a mount of the new namespace.
		cmd := exec.CommandContext(t.Context(), "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", program, "-test.v", "-test.timeout=2m",
			"-test.run=^(TestASessionFromOutside|TestPreflight|TestSessionsAndGroups)$/joins")
		cmd.Env = append(os.Environ(), outsideVariable+"=1", "GORACE=atexit_sleep_ms=0")
		out, err := cmd.CombinedOutput()
		for _, name := range []string{"TestASessionFromOutside", "TestPreflight", "TestSessionsAndGroups/another_joins_us"} {
			if !strings.Contains(string(out), "--- PASS: "+name+" ") {
				t.Errorf("%s did not pass", name)
			}
		}
		if err != nil || t.Failed() {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=count", outsideVariable+"=")
	cmd.SysProcAttr = &syscall.SysProcAttr{} // no session of its own
	j := start(t, cmd)
	_, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: j.path("x"), CRIU: c})
	var e *Error
	if !errors.As(err, &e) || e.Class != Env || e.Errno != syscall.EOPNOTSUPP || !strings.HasSuffix(err.Error(), "start the job with setsid(1)") {
		t.Errorf("without a session of its own: %v", err)
	}
	noBoxes(t, j.dir)
	j.goesOn(t)
}
