package run

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Prefix begins the name of everything that a run makes outside of its namespaces.
const Prefix = "jx-"

// insideVar names the sandbox's directory to the program inside.
const insideVar = "JX_SANDBOX"

// stopTime is how long the program inside may take to end when it is told to.
const stopTime = 20 * time.Second

// Inside says whether this process is in a sandbox.
func Inside() bool { return os.Getenv(insideVar) != "" }

// Alive says whether a process is in the sandbox of a directory.
func Alive(dir string) bool {
	paths, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is sound
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil && slices.Contains(strings.Split(string(b), "\x00"), insideVar+"="+dir) {
			return true
		}
	}
	return false
}

// Sandbox runs this program again, with other arguments, in namespaces of its
// own: network, mounts and processes. All that it prints goes to out. It returns the
// exit status.
func Sandbox(out io.Writer, args ...string) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("a run makes namespaces and file systems, for which it must be root")
	}
	dir, err := os.MkdirTemp("", Prefix)
	if err != nil {
		return 0, fmt.Errorf("make a sandbox: %w", err)
	}
	defer os.Remove(dir) // empty: all that was in it was on a tmpfs of the sandbox
	told, tell, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make a sandbox: %w", err)
	}
	defer told.Close()

	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideVar+"="+dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // Ctrl-C is for us: we pass it on
	}
	// Pdeathsig is sent when the thread ends that has started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("make a sandbox: %w", err)
	}
	_ = tell.Close()

	ended := make(chan struct{})
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		guard(told, cmd.Process.Pid, ended)
	}()
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	for {
		select {
		case <-signals:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			time.AfterFunc(stopTime, func() { _ = cmd.Process.Kill() })
			continue
		case err = <-waited:
		}
		break
	}
	close(ended)
	<-guarded
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if s := cmd.ProcessState; !s.Exited() {
		return 0, fmt.Errorf("the sandbox ended early: %v", s)
	}
	return cmd.ProcessState.ExitCode(), nil
}

// guard keeps a descriptor of each file system that is frozen in the sandbox, and
// thaws what is frozen still when the sandbox has ended: a frozen one would stay
// for ever, and its loop device with it.
func guard(told io.Reader, pid int, ended <-chan struct{}) {
	open := map[string]*os.File{}
	lines := bufio.NewScanner(told)
	for lines.Scan() {
		what, dir, _ := strings.Cut(lines.Text(), " ")
		if f := open[dir]; f != nil {
			_ = f.Close()
			delete(open, dir)
		}
		if what == "freeze" {
			if f, err := os.Open(filepath.Join(fmt.Sprintf("/proc/%d/root", pid), dir)); err == nil {
				open[dir] = f
			}
		}
	}
	<-ended
	for _, f := range open {
		_ = unix.IoctlSetInt(int(f.Fd()), IoctlThaw, 0) // it may have been thawed
		_ = f.Close()
	}
}

// IoctlThaw is FITHAW of ioctl_fsfreeze(2).
const IoctlThaw = 0xc0045878

// tellFD is where the program inside tells of file systems that it freezes.
const tellFD = 3

// Enter prepares the sandbox from inside, and returns its directory, a tmpfs.
func Enter() (dir string, freezing func(dir string, frozen bool), err error) {
	dir = os.Getenv(insideVar)
	if os.Getpid() != 1 || dir == "" {
		return "", nil, errors.New("not in a sandbox")
	}
	err = errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("jx", dir, "tmpfs", 0, "size=2g,mode=700"),
		// A node with mounts of its own sees when those here change.
		unix.Mount("", dir, "", unix.MS_SHARED, ""),
	)
	if err != nil {
		return "", nil, fmt.Errorf("prepare the sandbox: %w", err)
	}
	pipe := os.NewFile(tellFD, "guard")
	unix.CloseOnExec(tellFD)
	freezing = func(dir string, frozen bool) {
		what := "thaw"
		if frozen {
			what = "freeze"
		}
		_, _ = fmt.Fprintf(pipe, "%s %s\n", what, dir) // nobody there: then nobody would thaw either way
	}
	return dir, freezing, nil
}
