package job

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Foreign is a command that is not our child, with what it has started.
type Foreign struct{ kin kin }

// Watch looks after the process pid. What it starts will be found by descent and by
// the [Mark] of id.
func Watch(pid int, id string) (*Foreign, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return &Foreign{kin{root: pid, fd: fd, mark: id, master: -1}}, nil
}

// Ended returns a channel that is closed when the process has ended.
func (f *Foreign) Ended() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		wait(f.kin.fd)
		close(ended)
	}()
	return ended
}

// AllEnded returns a channel that is closed when nothing is left of the process and
// what it has started.
func (f *Foreign) AllEnded() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			found := f.kin.find()
			if len(found) == 0 {
				return
			}
			for _, p := range found {
				p.await()
			}
		}
	}()
	return ended
}

// await waits for the end of the process that was found.
func (p process) await() {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, ok := readProcess(p.pid); ok && now.parent == p.parent {
		wait(fd)
	}
}

// End ends all of them: with the signal, and when grace has passed with SIGKILL. It
// returns how many survived that for some seconds.
func (f *Foreign) End(s syscall.Signal, grace time.Duration) int {
	if grace > 0 {
		f.kin.signal(s)
		f.kin.signal(syscall.SIGCONT) // a stopped one would not act on it
		for until := time.Now().Add(grace); time.Now().Before(until); time.Sleep(killInterval) {
			if len(f.kin.find()) == 0 {
				return 0
			}
		}
	}
	left := 0
	for until := time.Now().Add(killPatience); time.Now().Before(until); time.Sleep(killInterval) {
		if left = f.kin.signal(syscall.SIGKILL); left == 0 {
			break
		}
	}
	return left
}

// wait waits for the end of the process of a pidfd.
func wait(fd int) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return
		}
	}
}
