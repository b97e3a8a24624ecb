package self

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// userVariable is set in a user namespace of our own.
const userVariable = "CHECKPOINT_TEST_USERS"

// liveAsRoot makes a new pid and mount namespace one that CRIU can work in.
func liveAsRoot() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// CRIU finds no mount of descriptors that are older than ours.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	return unix.Dup2(int(null.Fd()), 0)
}

// lacksResource says whether root here may not even look at the limits of other users'
// processes, as in many containers.
func lacksResource() bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err != nil || data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}

// TestAnotherUser has jobs checkpointed that are not root's. Where our root may not, it goes
// on as the root of a user namespace, who may.
func TestAnotherUser(t *testing.T) {
	need(t)
	if lacksResource() {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.timeout=2m", "-test.run=^TestAnotherUser$")
		cmd.Env = append(os.Environ(), userVariable+"=1", "GORACE=atexit_sleep_ms=0")
		ids := []syscall.SysProcIDMap{{Size: 65536}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Skip("it takes CAP_SYS_RESOURCE, or user namespaces: ", err)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: TestAnotherUser ") {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	t.Run("their own job", func(t *testing.T) {
		j := begin(t, Options{}, 65534, "app", "state.ckpt", "stay")
		j.says(t, "begun")
		touch(t, j.path("go"))
		connect(t, j.says(t, "false")[1])
		if e := j.event(t); e.Err != nil || e.UID != 65534 {
			t.Errorf("the server tells of %+v", e)
		}
		st, err := os.Stat(j.path("state.ckpt"))
		if err != nil || st.Sys().(*syscall.Stat_t).Uid != 65534 || st.Mode() != 0o600 {
			t.Errorf("the file is %+v, %v", st, err)
		}
		if isThere(j.path("state.ckpt.part")) {
			t.Error("the unfinished file is there too")
		}
	})
	t.Run("what a killed server has left", func(t *testing.T) {
		j := serve(t, Options{}, 65534)
		touch(t, j.path("x.part"))
		if err := os.Chown(j.path("x.part"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		j.start(t, "asks", 65534, "x")
		if line := strings.Join(j.says(t, "false"), " "); line != "false <nil>" {
			t.Errorf("it was told %q", line)
		}
		if isThere(j.path("x.part")) {
			t.Error("it is there")
		}
	})
	t.Run("a process of another user", func(t *testing.T) {
		j := begin(t, Options{}, 0, "parent", "x")
		if line := strings.Join(j.says(t, "false"), " "); !strings.Contains(line, "it is not theirs alone: process ") {
			t.Errorf("it was told %q", line)
		}
		left(t, j)
	})
	t.Run("a place that is not theirs", func(t *testing.T) {
		closed := t.TempDir()
		for _, file := range []string{filepath.Join(closed, "x"), "/x"} {
			j := begin(t, Options{}, 65534, "asks", file)
			if line := strings.Join(j.says(t, "false"), " "); !strings.Contains(line, "permission denied") {
				t.Errorf("it was told %q", line)
			}
			left(t, j)
		}
		if isThere("/x") || isThere("/x.part") {
			t.Error("/x is there")
		}
	})
}
