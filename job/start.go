package job

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit statuses of a shell for a command that does not run (POSIX.1-2024, 2.8.2).
const (
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// StartError is returned by Start when the command cannot be run.
type StartError struct {
	Name string
	Err  error
}

func (e *StartError) Error() string { return fmt.Sprintf("cannot run %q: %v", e.Name, e.Err) }
func (e *StartError) Unwrap() error { return e.Err }

// StartCode is the exit status for an error of Start: 127 if there is no such
// command, 126 if it cannot be executed.
func StartCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return CodeNotFound
	}
	return CodeNotExecutable
}

// lookPath finds a command as execvp(3) does, where an entry that may not be
// executed is passed over, but remembered as the reason if nothing better comes.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	reason := error(syscall.ENOENT)
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		file := dir + "/" + name
		st, err := os.Stat(file)
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				reason = syscall.EACCES
			}
			continue
		}
		if st.IsDir() || unix.Access(file, unix.X_OK) != nil {
			reason = syscall.EACCES
			continue
		}
		return file, nil
	}
	return "", reason
}

// wait forks the child at the gate and reports every change of a child until it is
// told to stop. It keeps to one thread, and the thread lives as long as the command:
// the child is killed when the thread that forked it ends (PR_SET_PDEATHSIG, prctl(2)).
func (j *Job) wait(path string, sock int, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	group := sharedGroup
	if j.own {
		group = ownGroup
	}
	argv := append([]string{gateName, strconv.Itoa(sock), strconv.Itoa(os.Getpid()), group, path}, j.opts.Argv...)
	pid, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	_ = unix.Close(sock)
	j.pid = pid
	started <- err
	if err != nil {
		return
	}
	for {
		c := change{}
		c.pid, c.err = syscall.Wait4(-1, &c.status, syscall.WUNTRACED, nil)
		if c.err == syscall.EINTR {
			continue
		}
		j.changes <- c
		if c.err != nil || !<-j.resume {
			return
		}
	}
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}
