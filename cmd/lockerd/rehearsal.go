package main

import (
	"context"
	"sync"

	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/freezer"
)

// rehearsed is an order of which only is told what it would freeze.
type rehearsed struct {
	text string
	once sync.Once
	over chan struct{}
}

func rehearse(ctx context.Context, x *freezer.Executor, t cluster.Task) (cluster.Prepared, error) {
	text, err := x.Survey(ctx, t.Action, t.Spec)
	if err != nil {
		return nil, err
	}
	return &rehearsed{text: text, over: make(chan struct{})}, nil
}

func (r *rehearsed) Freeze(context.Context) (string, error) { return r.text, nil }
func (r *rehearsed) Renew()                                 {}
func (r *rehearsed) Done() <-chan struct{}                  { return r.over }
func (r *rehearsed) Err() error                             { return nil }

func (r *rehearsed) Thaw() error {
	r.once.Do(func() { close(r.over) })
	return nil
}

func (r *rehearsed) Cause() string {
	select {
	case <-r.over:
		return freezer.CauseAsked
	default:
		return ""
	}
}
