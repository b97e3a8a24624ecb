package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/freezer"
)

// executor lets the cluster freeze on this host.
type executor struct {
	*freezer.Executor
	closing chan struct{} // closed when the node is done with it
}

// Close thaws, and waits for the hooks to be told of it. They may take their time.
func (x executor) Close() error {
	close(x.closing)
	return x.Executor.Close()
}

func (x executor) Prepare(ctx context.Context, t cluster.Task) (cluster.Prepared, error) {
	p, err := x.Executor.Prepare(ctx, t.Order, t.Action, t.Spec, t.Timeout, t.Lease)
	if err != nil {
		return nil, err // and no interface that has a nil in it
	}
	return p, nil
}

// openExecutor makes the executor of --executors; nil without.
func (o *options) openExecutor(admin *adminPort, log hclog.Logger) (cluster.Executor, error) {
	if len(o.executors) == 0 {
		return nil, nil
	}
	x, err := freezer.NewExecutor(freezer.ExecutorConfig{
		Procs:       slices.Contains(o.executors, executorProcs),
		FS:          slices.Contains(o.executors, executorFS),
		HooksDir:    o.hooks,
		HookTimeout: o.hookTimeout,
		Protect:     append([]string{o.dataDir}, o.protect...),
		Except:      admin.spared,
		Log:         log.Named("executor").Info,
	})
	switch {
	case errors.Is(err, freezer.ErrHook):
		return nil, usagef("--hooks: %w", err)
	case err != nil:
		return nil, fmt.Errorf("--executors: %w", err)
	}
	return executor{x, make(chan struct{})}, nil
}
