package checkpoint

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of clone(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// startAs starts this program once more in a process of a given number, as the leader of
// a new session or a new process group. Its descriptors are ours that are not closed on
// exec.
func startAs(l leader, name string, env []string) (pid int, err error) {
	path, err := syscall.BytePtrFromString("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	argv, err := syscall.SlicePtrFromStrings([]string{name})
	if err != nil {
		return 0, err
	}
	envv, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return 0, err
	}
	tid := int32(l.PID)
	// The pointers are in the structure as numbers, so the collector does not know them.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&tid)
	args := cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTID: uint64(uintptr(unsafe.Pointer(&tid))), setTIDSize: 1}
	syscall.ForkLock.Lock()
	runtime.LockOSThread()
	child, errno := cloneExec(&args, l.Session, path, &argv[0], &envv[0])
	runtime.UnlockOSThread()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	switch errno {
	case 0:
		return int(child), nil
	case unix.EEXIST:
		return 0, inUse("process", l.PID)
	}
	return 0, fmt.Errorf("start a process of number %d: %w", l.PID, os.NewSyscallError("clone3", errno))
}

// cloneExec is between clone and exec in the child: one thread of what was a Go program.
// Nothing there may allocate, grow the stack, or run a handler of a signal, so all signals
// are blocked until just before the exec.
//
//go:norace
//go:noinline
func cloneExec(args *cloneArgs, session bool, path *byte, argv, envv **byte) (pid uintptr, errno syscall.Errno) {
	all, before := ^uint64(0), uint64(0)
	_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&before)), 8, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&before)), 0, 8, 0, 0)
		return pid, errno
	}
	if session {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	} else {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETPGID, 0, 0, 0)
	}
	if errno == 0 {
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&before)), 0, 8, 0, 0)
		_, _, _ = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envv)))
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
