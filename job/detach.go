package job

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const launchName = "job-launch"

// Detach starts this program under another name, in a session of its own, as
// nobody's child and with no descriptor of ours but one end of a socket, whose
// number is its first argument. The other end is returned. It is for before
// [Prepare]: afterwards orphans become our children.
func Detach(name string, args ...string) (*os.File, error) {
	ours, sock, err := newGate()
	if err != nil {
		return nil, err
	}
	argv := append([]string{launchName, strconv.Itoa(sock), name, strconv.Itoa(sock)}, args...)
	pid, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	_ = unix.Close(sock)
	if err == nil {
		err = launched(pid)
	}
	if err != nil {
		_ = ours.file.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return ours.file, nil
}

// launched waits for the launcher.
func launched(pid int) error {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if code := exitCode(status); code != 0 {
		return fmt.Errorf("its launcher ended with status %d", code)
	}
	return nil
}

// launch is what the launcher does: it has a child, and goes.
func launch(sock int, argv []string) int {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 1
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 1
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 && fd != sock {
			unix.CloseOnExec(fd)
		}
	}
	_, err = syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1
	}
	return 0
}
