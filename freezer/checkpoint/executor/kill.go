package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// stopTime is how long the processes of a job that is to be killed may take to stand still.
const stopTime = time.Second

// victims are processes that are to be killed.
type victims struct {
	found []victim
	known map[int]bool
}

type victim struct {
	pid, fd int
	start   uint64
}

// end kills the processes of a manifest that are still those, with what they have started
// since, and waits for their end.
func end(ctx context.Context, m *checkpoint.Manifest) error {
	v := victims{known: make(map[int]bool)}
	defer v.close()
	for _, p := range m.Processes {
		if p.Ended {
			continue
		}
		if err := v.stop(p.PID, func() bool { start, err := startOf(p.PID); return err == nil && start == p.Start }); err != nil {
			return err
		}
	}
	// What stands still starts nothing more.
	for until := time.Now().Add(stopTime); time.Now().Before(until) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		more, err := v.stopBelow()
		if err != nil {
			return err
		}
		if !more && v.stand() {
			break
		}
	}
	return v.kill(ctx)
}

// add adds a process, if it is the one that is meant when its number cannot become another's.
func (v *victims) add(pid int, meant func() bool) (added bool, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, syscall.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", pid, err)
	}
	start, err := startOf(pid)
	if err != nil || !meant() {
		_ = unix.Close(fd)
		return false, nil
	}
	v.found, v.known[pid] = append(v.found, victim{pid, fd, start}), true
	return true, nil
}

// stop adds a process, and stops it.
func (v *victims) stop(pid int, meant func() bool) error {
	added, err := v.add(pid, meant)
	if err != nil || !added {
		return err
	}
	if err := unix.PidfdSendSignal(v.found[len(v.found)-1].fd, unix.SIGSTOP, nil, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	return nil
}

// left are those of a session that live: the processes of a job, and others.
func left(session int, m *checkpoint.Manifest) (job, others []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !lives(pid) || !within(pid, session)() {
			continue
		}
		if slices.ContainsFunc(m.Processes, func(p checkpoint.Process) bool { return p.PID == pid }) {
			job = append(job, pid)
		} else {
			others = append(others, pid)
		}
	}
	return job, others, nil
}

// endAll kills processes that are still of a session, and waits for their end.
func endAll(ctx context.Context, session int, pids []int) error {
	v := victims{known: make(map[int]bool)}
	defer v.close()
	for _, pid := range pids {
		if _, err := v.add(pid, within(pid, session)); err != nil {
			return err
		}
	}
	return v.kill(ctx)
}

// within says whether a process is of a session, or descends from one that is.
func within(pid, session int) func() bool {
	return func() bool {
		for pid > 1 {
			if sid, err := statOf(pid, 6); err == nil && sid == strconv.Itoa(session) {
				return true
			}
			parent, err := parentOf(pid)
			if err != nil {
				return false
			}
			pid = parent
		}
		return false
	}
}

// lives says whether a process has not ended.
func lives(pid int) bool {
	state, err := statOf(pid, 3)
	return err == nil && state != "Z" && state != "X"
}

// stopBelow stops the children of all, and says whether there was a new one.
func (v *victims) stopBelow() (more bool, err error) {
	n := len(v.found)
	for i := 0; i < len(v.found) && len(v.found) < maxTree; i++ {
		p := v.found[i]
		below, err := children(p.pid)
		if start, e := startOf(p.pid); err != nil || e != nil || start != p.start {
			continue // it has ended
		}
		for _, pid := range below {
			if v.known[pid] {
				continue
			}
			if err := v.stop(pid, func() bool { parent, err := parentOf(pid); return err == nil && parent == p.pid }); err != nil {
				return false, err
			}
		}
	}
	return len(v.found) > n, nil
}

// stand says whether all stand still, or have ended.
func (v *victims) stand() bool {
	for _, p := range v.found {
		if state, err := statOf(p.pid, 3); err == nil && state != "T" && state != "t" && lives(p.pid) {
			return false
		}
	}
	return true
}

func (v *victims) kill(ctx context.Context) error {
	for _, p := range v.found {
		if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end process %d: %w", p.pid, err)
		}
	}
	for _, p := range v.found {
		for poll := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}; poll[0].Revents == 0; {
			if ctx.Err() != nil {
				return fmt.Errorf("process %d was killed, and does not end: %w", p.pid, context.Cause(ctx))
			}
			if _, err := unix.Poll(poll, int(lookAgain/time.Millisecond)); err != nil && !errors.Is(err, syscall.EINTR) {
				return fmt.Errorf("wait for the end of process %d: %w", p.pid, err)
			}
		}
	}
	return nil
}

func (v *victims) close() {
	for _, p := range v.found {
		_ = unix.Close(p.fd)
	}
}
