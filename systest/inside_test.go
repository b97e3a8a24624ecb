package systest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// insideEnv names the test that runs again in namespaces of its own.
	insideEnv = "SYSTEST_INSIDE"
	// programsEnv is where the programs are that the first run has built.
	programsEnv = "SYSTEST_PROGRAMS"
)

// insideTime bounds such a run; see also seriesTime.
var insideTime = 4 * time.Minute

// inside runs the test again as the first process of new namespaces, CLONE_NEW* of
// clone(2), and reports whether this is that run. Everything in a new pid
// namespace ends with the run. It has the files from descriptor 3 on.
func inside(t *testing.T, namespaces uintptr, files ...*os.File) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	c := exec.CommandContext(limited(t, insideTime), "/proc/self/exe", "-test.run="+pattern, "-test.v", "-test.timeout="+(insideTime-20*time.Second).String())
	c.Env = append(os.Environ(), insideEnv+"="+t.Name(), programsEnv+"="+filepath.Dir(lockerd))
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	if c.Process == nil && errors.Is(err, syscall.EPERM) {
		t.Skip("namespaces take root")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("%v in namespaces of its own:\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
	return false
}

// ownProc lets /proc show the pid namespace that we are in.
func ownProc(t *testing.T) {
	t.Helper()
	must(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	must(t, syscall.Mount("proc", "/proc", "proc", 0, ""))
}
