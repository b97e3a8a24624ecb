package freezer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	guardName    = "freezer-guard"
	launcherName = "freezer-launch"
	// guardSocket is the descriptor of a guard's socket.
	guardSocket = 3
)

// AtGuard must be the first call in main of a program that uses this package. In the
// processes that are to be guards it does not return.
func AtGuard() {
	if len(os.Args) != 1 {
		return
	}
	switch strings.TrimRight(os.Args[0], " ") {
	case launcherName:
		os.Exit(launch())
	case guardName:
		if len(os.Args[0]) == titleRoom {
			os.Exit(guardMain())
		}
	}
}

// padded is the first argument of a guard: it leaves room for a title.
func padded() string { return guardName + strings.Repeat(" ", titleRoom-len(guardName)) }

// startGuard starts this program as a guard, in a session of its own and as nobody's
// child: not of ours, so that what is done to our descendants does not reach it. It
// returns our end of the socket.
func startGuard(dir string) (*packets, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for a guard: %w", err)
	}
	defer unix.Close(pair[1])
	ours, err := newPackets(pair[0])
	if err != nil {
		return nil, err
	}
	if err := startLauncher(dir, pair[1]); err != nil {
		ours.close()
		return nil, fmt.Errorf("start a guard: %w", err)
	}
	return ours, nil
}

func startLauncher(dir string, sock int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, dirVariable+"=") })
	pid, err := syscall.ForkExec("/proc/self/exe", []string{launcherName}, &syscall.ProcAttr{
		Env:   append(env, dirVariable+"="+dir),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(sock)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.ECHILD { // somebody else has reaped it
			return nil
		}
		if err != nil || !status.Exited() || status.ExitStatus() != 0 {
			return fmt.Errorf("its launcher ended with status %#x: %v", int(status), err)
		}
		return nil
	}
}

// launch is what the launcher does: it has a child, and goes.
func launch() int {
	_, err := syscall.ForkExec("/proc/self/exe", []string{padded()}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, guardSocket},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1
	}
	return 0
}
