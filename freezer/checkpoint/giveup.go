package checkpoint

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A restart that is given up must not let go of what it has restored. CRIU traces the
// processes until the last moment, and if it ended they would run. So they are killed first,
// and CRIU after them.

// giveUp ends a run of CRIU, and what it has restored, and what else it has started: it tries
// some things in a child that stands still, or sleeps, for ever.
func (o *restoreOrder) giveUp(criu *os.Process) error {
	o.kill()
	if criu.Signal(syscall.SIGSTOP) == nil {
		o.killBelow(criu.Pid)
	}
	return criu.Kill()
}

// killBelow kills what descends from a process that has been told to stop.
func (o *restoreOrder) killBelow(criu int) {
	for until := time.Now().Add(killTime); time.Now().Before(until); time.Sleep(abortInterval) {
		all, err := readTable()
		if err != nil {
			return
		}
		stands := all[criu].state == 'T' || !all[criu].lives()
		for pid := range all {
			if pid != criu && all.below(pid, criu) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if stands { // and had started all that it ever will
			return
		}
	}
}

// abandon ends what a run of CRIU has left, and waits for those that are our children then.
// If CRIU has failed it has ended the processes itself, but the eldest is for us to wait for.
func (o *restoreOrder) abandon() {
	o.kill()
	all, err := readTable()
	if err != nil {
		return
	}
	for _, pid := range o.PIDs {
		if all[pid].parent == os.Getpid() {
			_, _ = waitFor(pid)
		}
	}
}

// kill kills those processes of the job that descend from us, until none of them lives. One
// that another has made while that was being killed is found because orphans are our children
// from then on (PR_SET_CHILD_SUBREAPER of prctl(2)).
func (o *restoreOrder) kill() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // Linux 3.4
	for until := time.Now().Add(killTime); time.Now().Before(until); time.Sleep(abortInterval) {
		all, err := readTable()
		if err != nil {
			return
		}
		left := false
		for _, pid := range o.PIDs {
			if all[pid].lives() && pid != os.Getpid() && all.below(pid, os.Getpid()) {
				left = true
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if !left {
			return
		}
	}
}
