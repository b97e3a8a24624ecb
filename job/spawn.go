package job

import (
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Spawn starts a command as the leader of a session of its own, without a terminal. The
// descriptors 0 to 2 are files', further ones that are not close-on-exec are inherited. The
// command is killed when the calling thread ends, so the caller keeps to one
// (runtime.LockOSThread). The error is a [StartError].
func Spawn(argv []string, files [3]*os.File) (pid int, err error) {
	path, err := lookPath(argv[0])
	if err != nil {
		return 0, &StartError{Name: argv[0], Err: err}
	}
	attr := &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	pid, err = syscall.ForkExec(path, argv, attr)
	if err == syscall.ENOEXEC { // as in execute
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), attr)
	}
	if err != nil {
		return 0, &StartError{Name: argv[0], Err: err}
	}
	return pid, nil
}

// Find says whether there is a command, with the error that [Spawn] would have.
func Find(argv []string) error {
	if _, err := lookPath(argv[0]); err != nil {
		return &StartError{Name: argv[0], Err: err}
	}
	return nil
}

// Reap calls each for every child that ends, until it returns false.
func Reap(each func(pid int, status syscall.WaitStatus) bool) error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return os.NewSyscallError("wait4", err)
		case !each(pid, status):
			return nil
		}
	}
}

// KillBelow kills all descendants of this process, and gives up on those that live
// some seconds later.
func KillBelow() (left int) {
	for range int(killPatience / killInterval) {
		all := descendants()
		if left = len(all); left == 0 {
			return 0
		}
		for _, p := range all {
			p.signal(syscall.SIGKILL)
		}
		time.Sleep(killInterval)
	}
	return left
}

// EndBy ends this process by a signal, without a core: that would be ours, and not the
// command's.
func EndBy(sig syscall.Signal) {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	// struct kernel_sigaction with SIG_DFL. signal.Reset leaves the handlers of the
	// runtime, which for SIGABRT and the like prints all goroutines.
	var action [4]uint64
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	_ = unix.Kill(os.Getpid(), sig)
	for {
		_ = unix.Pause()
	}
}
