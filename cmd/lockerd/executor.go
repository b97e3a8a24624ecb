package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/freezer/checkpoint/executor"
)

// executors carry out orders on this host: each kind its own actions.
type executors struct {
	freezer     *freezer.Executor
	checkpoints *executor.Executor // nil if they are off
	closing     chan struct{}      // closed when the node is done with them
}

var errNoCheckpoints = errors.New("checkpoints are off: start lockerd there with --executors checkpoint")

func (x executors) Prepare(ctx context.Context, t cluster.Task) (cluster.Prepared, error) {
	if strings.HasSuffix(t.Action, freezer.ActionDryRun) {
		return rehearse(ctx, x.freezer, t)
	}
	if t.Action != executor.ActionCheckpoint && t.Action != executor.ActionRestart {
		p, err := x.freezer.Prepare(ctx, t.Order, t.Action, t.Spec, t.Timeout, t.Lease)
		if err != nil {
			return nil, err // and no interface that has a nil in it
		}
		return p, nil
	}
	if x.checkpoints == nil {
		return nil, errNoCheckpoints
	}
	p, err := x.checkpoints.Prepare(ctx, t.Order, t.Action, t.Spec, taskLocks{t.Locks})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Recover ends what was under way when lockerd was ended.
func (x executors) Recover(ctx context.Context, locks *cluster.TaskLocks) {
	if x.checkpoints != nil {
		x.checkpoints.Recover(ctx, taskLocks{locks})
	}
}

// Close thaws, and waits for the hooks to be told of it. They may take their time.
func (x executors) Close() error {
	close(x.closing)
	err := x.freezer.Close()
	if x.checkpoints != nil {
		err = errors.Join(err, x.checkpoints.Close())
	}
	return err
}

// taskLocks is the lock table as checkpoints see it.
type taskLocks struct{ *cluster.TaskLocks }

func (l taskLocks) Holds(ctx context.Context, lock string) ([]executor.Hold, error) {
	list, err := l.TaskLocks.Holds(ctx, lock)
	holds := make([]executor.Hold, len(list))
	for i, h := range list {
		holds[i] = executor.Hold(h)
	}
	return holds, err
}

func (l taskLocks) Ended(ctx context.Context, h executor.Hold) error {
	return l.TaskLocks.Ended(ctx, cluster.TaskHold(h))
}

func (taskLocks) Refused(err error) bool {
	var r cluster.Refusal
	return errors.As(err, &r)
}

// openExecutor makes the executor of --executors; nil without.
func (o *options) openExecutor(admin *adminPort, log hclog.Logger) (cluster.Executor, error) {
	if len(o.executors) == 0 {
		return nil, nil
	}
	log = log.Named("executor")
	f, err := freezer.NewExecutor(freezer.ExecutorConfig{
		Procs:       slices.Contains(o.executors, executorProcs),
		FS:          slices.Contains(o.executors, executorFS),
		HooksDir:    o.hooks,
		HookTimeout: o.hookTimeout,
		Protect:     append([]string{o.dataDir}, o.protect...),
		Except:      admin.spared,
		Log:         log.Info,
	})
	switch {
	case errors.Is(err, freezer.ErrHook):
		return nil, usagef("--hooks: %w", err)
	case err != nil:
		return nil, fmt.Errorf("--executors: %w", err)
	}
	x := executors{freezer: f, closing: make(chan struct{})}
	if slices.Contains(o.executors, executorCheckpoint) {
		records := ""
		if o.dataDir != "" {
			records = filepath.Join(o.dataDir, "checkpoints")
		}
		x.checkpoints = executor.New(records, log.Info)
	}
	return x, nil
}
