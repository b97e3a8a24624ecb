package systest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The commands by which the README lets its readers try a freeze do what it says.
func TestReadmeFreeze(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("freezing takes root")
	}
	if !inside(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID) {
		return
	}
	ownProc(t)
	// Whatever the commands write is in memory, and goes with us.
	for _, dir := range []string{"/mnt", "/run", "/var/lib"} {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	}
	program(t, "ip", "link", "set", "lo", "up")
	t.Cleanup(func() {
		if f, err := os.Open("/mnt/try"); err == nil {
			_ = unix.IoctlSetInt(int(f.Fd()), fithaw, 0) // it should not be frozen
			_ = f.Close()
		}
	})
	text, err := os.ReadFile("../README.md")
	must(t, err)
	_, rest, ok := strings.Cut(string(text), "To try it on one host, as root, with `bin` in `PATH`:\n\n")
	if !ok {
		t.Fatal("the README has no such example")
	}
	var script strings.Builder
	for line := range strings.Lines(rest) {
		command, is := strings.CutPrefix(line, "    ")
		if !is {
			break
		}
		script.WriteString(command)
	}
	c := exec.CommandContext(t.Context(), "sh", "-exc", script.String())
	c.Env = append(os.Environ(), "PATH="+filepath.Dir(lockctl)+":"+os.Getenv("PATH"))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	if err != nil || !regexp.MustCompile(`(?m)^2 +fsfreeze +frozen +root@\S+ +\d\S* +try +frozen +file system /mnt/try `).Match(out) {
		log, _ := os.ReadFile("/mnt/try.log")
		t.Errorf("%v\n%s\n%s", err, out, log)
	}
	program(t, "e2fsck", "-fn", "/mnt/copy.img")
	program(t, "mount", "-o", "loop", "/mnt/copy.img", "/mnt/try")
	defer func() { must(t, unix.Unmount("/mnt/try", 0)) }()
	if b, err := os.ReadFile("/mnt/try/file"); err != nil || len(b) == 0 {
		t.Errorf("the file in the copy: %q, %v", b, err)
	}
}
