package cluster

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
)

// TaskLocks is what an executor may ask of the lock table for a task.
type TaskLocks struct {
	node *Node
	by   string
}

// TaskHold is a hold as executors need to know it.
type TaskHold struct {
	Fence     uint64
	Locks     []string
	Owner     string
	Mode      string
	Host      string
	PID       int
	Start     uint64 // of the process, in clock ticks since boot; 0 if not known
	Here      bool   // the process is of this host, and of this node's pid namespace
	Over      bool   // it is of an earlier boot of this host
	Suspended bool
	By        string // who has suspended it
	Context   string // where its job is, then
	ContextID string // of the file there
	Job       uint64 // under which fence it was put there
	Ended     bool   // the job is known to have ended
	Resumed   bool   // it was suspended, and the process is not known to have been let run
}

// Holds returns the holds of a lock, or, of "", those of the processes of this host.
func (l *TaskLocks) Holds(ctx context.Context, lock string) ([]TaskHold, error) {
	t, err := l.node.Table(ctx, false)
	if err != nil {
		return nil, fmt.Errorf("read the lock table: %w", err)
	}
	var list []TaskHold
	for _, h := range t.Holds {
		i := TaskHold{
			Fence: uint64(h.Fence), Locks: h.Locks, Owner: h.Owner, Mode: modeWord(h.Mode),
			Host: h.Process.Host, PID: int(h.Process.PID), Start: h.Process.Start, Here: l.node.liveness.place.has(h.Process),
			Over: l.node.liveness.place.outlived(h.Process), Resumed: h.Resumed != nil,
		}
		if s := h.Suspended; s != nil {
			i.Suspended, i.By, i.Context, i.ContextID, i.Job, i.Ended = true, s.By, s.Context, s.ContextID, uint64(s.Job), s.Ended
		}
		if lock == "" && i.Here || slices.Contains(h.Locks, lock) {
			list = append(list, i)
		}
	}
	return list, nil
}

// Suspend has the table keep a hold for a job that is in a file, which has an id of its own. A [Refusal] says that it
// does not. After any other error it is not known, and Suspend may be called again.
func (l *TaskLocks) Suspend(ctx context.Context, fence uint64, file, id string) error {
	return l.agreed(ctx, fence, fsm.Suspend{Fence: fsm.Fence(fence), By: l.by, Context: file, ContextID: id})
}

// Ended tells the table that the job of a suspended hold does not run any more, so that
// another node may have it. Of h, what [TaskLocks.Holds] says counts, or Fence, Context
// and ContextID for what this task has suspended.
func (l *TaskLocks) Ended(ctx context.Context, h TaskHold) error {
	by := l.by
	if h.By != "" {
		by = h.By
	}
	return l.agreed(ctx, h.Fence, fsm.Suspend{
		Fence: fsm.Fence(h.Fence), By: by, Context: h.Context, ContextID: h.ContextID, Ended: true,
	})
}

// Runs tells the table that the process which has a resumed hold was let run: until then
// its end has the hold suspended again.
func (l *TaskLocks) Runs(ctx context.Context, fence uint64, pid int) error {
	return l.agreed(ctx, fence, fsm.Renew{Owner: l.restarted(pid), Fence: fsm.Fence(fence)})
}

// restarted is the owner of the hold of a restarted job.
func (l *TaskLocks) restarted(pid int) string {
	return fmt.Sprintf("%s_%d_restart", l.node.cfg.Host, pid)
}

// agreed proposes what says nothing but yes or no.
func (l *TaskLocks) agreed(ctx context.Context, fence uint64, c fsm.Command) error {
	res, err := l.settle(ctx, c)
	switch {
	case err != nil:
		return err
	case res.Code == fsm.NotHeld:
		return Refusal(fmt.Sprintf("the hold with fence %d is over", fence))
	case res.Code == fsm.Refused:
		return Refusal(res.Reason)
	}
	return nil
}

// Resume gives a suspended hold to a process of this host, which was restored from the file
// with the id, and returns its new fence. A
// [Refusal] says that it is not to be had; after any other error it is not known.
func (l *TaskLocks) Resume(ctx context.Context, fence uint64, id string, pid int) (uint64, error) {
	n := l.node
	p, err := pidprobe.Identify(pidprobe.Process{Host: n.cfg.Host, PID: int32(pid)})
	if err != nil {
		return 0, fmt.Errorf("identify process %d: %w", pid, err)
	}
	c := fsm.Resume{
		Fence: fsm.Fence(fence), ContextID: id, By: l.by, Owner: l.restarted(pid),
		Process: fsm.Process{Host: n.cfg.Host, PID: int32(pid), Start: p.Start, Boot: pidprobe.Here()}, Autounlock: true,
	}
	rand.Read(c.ID[:])
	res, err := l.settle(ctx, c)
	switch {
	case err != nil:
		return 0, err
	case res.Code == fsm.Granted:
		return uint64(res.Fence), nil
	case res.Code != fsm.NotHeld:
		return 0, Refusal(res.Reason)
	}
	// It may have been asked for twice, and the first answer lost.
	t, err := n.Table(ctx, false)
	if err != nil {
		return 0, fmt.Errorf("read the lock table: %w", err)
	}
	for _, h := range t.Holds {
		if h.Owner == c.Owner && h.ID == c.ID {
			return uint64(h.Fence), nil
		}
	}
	return 0, Refusal(fmt.Sprintf("the hold with fence %d is over", fence))
}

// settle proposes a command until it is answered, or ctx ends.
func (l *TaskLocks) settle(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	for {
		res, err := l.node.Submit(ctx, c)
		if err == nil {
			return res, nil
		}
		if ctx.Err() != nil || l.node.ctx.Err() != nil {
			return res, fmt.Errorf("no answer of the cluster: %w", err)
		}
		pause(ctx, reportAgain)
	}
}
