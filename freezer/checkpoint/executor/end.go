package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// lookAgain is how long we rest where nothing wakes us.
const lookAgain = 100 * time.Millisecond

// suspension is the part of a checkpoint that keeps the lock.
type suspension struct {
	order    uint64
	locks    Locks
	hold     *Hold
	file     string
	manifest *checkpoint.Manifest
	kept     bool // the table has agreed
}

// suspend has the table keep the lock, while the job stands still and its file is whole.
func (x *Executor) suspend(ctx context.Context, s *suspension) error {
	pids := above(s.manifest.Root)
	for _, p := range s.manifest.Processes {
		pids = append(pids, p.PID)
	}
	if err := only(ctx, s.locks, pids, s.hold); err != nil {
		return s.undone(err)
	}
	answer := make(chan error, 1)
	x.work.Go(func() { answer <- s.locks.Suspend(x.ctx, s.hold.Fence, s.file, s.manifest.ID) })
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		// The job is not kept waiting, and must not run under a lock that is suspended.
		x.work.Go(func() {
			if err := <-answer; err == nil {
				x.log("the lock was suspended late: ending the job", "order", s.order, "locks", s.hold.Locks, "file", s.file)
				x.end(x.ctx, s)
			}
		})
		return fmt.Errorf("the job runs on, and %s is whole: it is not known whether the lock will be suspended, and the job be ended: %w", s.file, context.Cause(ctx))
	}
	switch {
	case err == nil:
		s.kept = true
		return nil
	case s.locks.Refused(err):
		return s.undone(err)
	}
	return fmt.Errorf("the job runs on: %w", err)
}

// undone says why nothing has come of it, when that is certain.
func (s *suspension) undone(err error) error {
	if e := os.Remove(s.file); e != nil {
		err = fmt.Errorf("%w; and %s cannot be removed: %w", err, s.file, e)
	}
	return fmt.Errorf("the job runs on: %w", err)
}

// end sees to it that nothing of the job runs, and tells the table.
func (x *Executor) end(ctx context.Context, s *suspension) {
	err := end(ctx, s.manifest)
	if err == nil {
		h := *s.hold
		h.Context, h.ContextID = s.file, s.manifest.ID
		err = s.locks.Ended(ctx, h)
	}
	if err != nil {
		x.log("the lock is suspended, and cannot be had yet: it is not known to the cluster that the job has ended",
			"order", s.order, "locks", s.hold.Locks, "file", s.file, "error", err)
	}
}

// only refuses a job that has more holds than the one which can be kept for it: the others
// would be lost.
func only(ctx context.Context, locks Locks, pids []int, hold *Hold) error {
	holds, err := locks.Holds(ctx, "")
	if err != nil {
		return err
	}
	for _, h := range holds {
		if h.Fence != hold.Fence && !h.Over && !h.Suspended && slices.Contains(pids, h.PID) {
			return fmt.Errorf("the job holds %s too (process %d, fence %d), beside %s: one hold can be kept for it; release the other, or take both as one (lockersh --all)",
				strings.Join(h.Locks, " "), h.PID, h.Fence, strings.Join(hold.Locks, " "))
		}
	}
	return nil
}

// Recover brings to an end what was under way when an earlier executor was ended: jobs
// whose locks were suspended, and which ran on as nobody ended them; jobs that were let
// run, of which the table has not heard; and copies of memory that nobody needs.
func (x *Executor) Recover(ctx context.Context, locks Locks) {
	x.work.Go(x.sweep)
	var holds []Hold
	for {
		var err error
		if holds, err = locks.Holds(ctx, ""); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookAgain):
		}
	}
	var resumed []Hold
	for _, h := range holds {
		switch {
		case h.Suspended && !h.Ended:
			if err := finish(ctx, locks, h); err != nil && ctx.Err() == nil {
				x.log("a lock is suspended, and cannot be had: it is not known whether its job has ended; see to that, and break the lock",
					"locks", h.Locks, "fence", h.Fence, "file", h.Context, "error", err)
			}
		case h.Resumed && !h.Over:
			resumed = append(resumed, h)
		}
	}
	// Who was told to let a job run may not have come to it yet. Most end or run at once.
	for len(resumed) > 0 && ctx.Err() == nil {
		resumed = slices.DeleteFunc(resumed, func(h Hold) bool { return x.settled(ctx, locks, h) })
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
}

// settled says whether a restarted job has been let run, of which the table is told, or has
// ended, which it sees by itself.
func (x *Executor) settled(ctx context.Context, locks Locks, h Hold) bool {
	switch there, run := look(h.PID, h.Start); {
	case !there:
		return true
	case !run:
		return false
	}
	if err := locks.Runs(ctx, h.Fence, h.PID); err != nil && ctx.Err() == nil {
		x.log("a restarted job runs, and the table takes no note of it", "locks", h.Locks, "fence", h.Fence, "error", err)
	}
	return true
}

// finish ends the job of a suspended hold.
func finish(ctx context.Context, locks Locks, h Hold) error {
	if h.Over { // and so is all that ran here then
		return locks.Ended(ctx, h)
	}
	// What it says is killed: it has to be what was written here.
	st, err := os.Lstat(h.Context)
	if err != nil {
		return err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); !ok || !st.Mode().IsRegular() || st.Mode()&0o022 != 0 || int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s could be written by others than us", h.Context)
	}
	m, err := inspect(h.Context)
	if err != nil {
		return err
	}
	if m.ID != h.ContextID || !slices.ContainsFunc(m.Locks, func(l checkpoint.Lock) bool { return l.Fence == h.Job }) {
		return fmt.Errorf("%s is of another job, or of another time", h.Context)
	}
	if boot, err := checkpoint.Boot(); err != nil || boot != m.Boot {
		return errors.Join(fmt.Errorf("%s was not written since this host was started", h.Context), err)
	}
	if err := end(ctx, m); err != nil {
		return err
	}
	return locks.Ended(ctx, h)
}

// stageName is what the process calls itself that a job with numbers of its own lives under.
const stageName = "checkpoint-stage"

// look says whether a process is there, and whether it was let run: it does not stand still,
// nor does, if it is a stage, the job below it.
func look(pid int, start uint64) (there, run bool) {
	if now, err := startOf(pid); err != nil || start != 0 && now != start {
		return false, false
	}
	all := []int{pid}
	if nameOf(pid) == stageName {
		below, err := children(pid)
		if err != nil || len(below) == 0 {
			return true, false
		}
		all = append(all, below...)
	}
	for i, p := range all {
		state, err := statOf(p, 3)
		switch {
		case err != nil || state == "Z" || state == "X":
			return i > 0, false
		case state == "T" || state == "t":
			return true, false
		}
	}
	return true, true
}
