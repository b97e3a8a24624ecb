package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// fakeExecutor freezes nothing and remembers when. A gate, if it is set, holds up a
// step until it is closed or the order has ended.
type fakeExecutor struct {
	name string

	mu      sync.Mutex
	refuse  error
	broken  error // of Freeze
	gates   map[string]chan struct{}
	spans   []*fakeFreeze
	closed  bool
	stubbed int // how often a thaw is to fail
	rng     *rand.Rand
	single  bool // one order is in the way of the next, once it is prepared
	narrow  bool // once it is frozen, as it is for real
}

// fakeFreeze is one order at one host.
type fakeFreeze struct {
	exec     *fakeExecutor
	task     Task
	prepared time.Time
	frozen   time.Time // zero: never
	thawed   time.Time // zero: not yet
	cause    string
	done     chan struct{}
	timer    *time.Timer
	renewed  time.Time // last, since it is frozen
	lease    *time.Timer
}

func newFakeExecutor(name string) *fakeExecutor {
	return &fakeExecutor{name: name, gates: make(map[string]chan struct{})}
}

// hold keeps everybody in a step until the function that it returns is called.
func (x *fakeExecutor) hold(step string) (release func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	gate := make(chan struct{})
	x.gates[step] = gate
	return sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.gates, step)
		close(gate)
	})
}

func (x *fakeExecutor) pass(ctx context.Context, step string) error {
	x.mu.Lock()
	gate := x.gates[step]
	took, err := time.Duration(0), error(nil)
	if !strings.Contains(step, " ") {
		took, err = x.mood(step)
	}
	x.mu.Unlock()
	if err != nil || took > 0 {
		pause(ctx, took)
		return cmp.Or(err, ctx.Err())
	}
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mood is how long a step takes, and whether it fails, where that is left to chance.
func (x *fakeExecutor) mood(step string) (took time.Duration, err error) {
	if x.rng == nil {
		return 0, nil
	}
	took = time.Duration(x.rng.Int64N(int64(slowestThaw)))
	if step != "thaw" && x.rng.IntN(10) == 0 {
		took *= 20
	}
	if step != "thaw" && x.rng.IntN(25) == 0 {
		err = errors.New("no such luck")
	}
	return took, err
}

func (x *fakeExecutor) Prepare(ctx context.Context, t Task) (Prepared, error) {
	for _, step := range []string{"prepare", fmt.Sprint("prepare ", t.Order)} {
		if err := x.pass(ctx, step); err != nil {
			return nil, err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.spans {
		if x.single && f.cause == "" {
			return nil, fmt.Errorf("order %d is in the way", f.task.Order)
		}
	}
	if x.refuse != nil {
		return nil, x.refuse
	}
	f := &fakeFreeze{exec: x, task: t, prepared: time.Now(), done: make(chan struct{})}
	x.spans = append(x.spans, f)
	return f, nil
}

func (x *fakeExecutor) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	for _, f := range x.spans {
		if !f.frozen.IsZero() && f.thawed.IsZero() {
			return fmt.Errorf("%s was closed with order %d frozen", x.name, f.task.Order)
		}
	}
	return nil
}

func (f *fakeFreeze) Freeze(ctx context.Context) (string, error) {
	x := f.exec
	for _, step := range []string{"freeze", fmt.Sprint("freeze ", f.task.Order)} {
		if err := x.pass(ctx, step); err != nil {
			return "", err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, g := range x.spans {
		if x.narrow && g.cause == "" && !g.frozen.IsZero() {
			return "", fmt.Errorf("order %d is in the way", g.task.Order)
		}
	}
	switch {
	case x.broken != nil:
		return "", x.broken
	case f.cause != "":
		return "", errors.New("thawed already")
	}
	f.frozen = time.Now()
	f.renewed = f.frozen
	f.lease = time.AfterFunc(f.task.Lease, func() { f.undo("quorum") })
	if f.task.Timeout > 0 {
		f.timer = time.AfterFunc(f.task.Timeout, func() { f.undo("deadline") })
	}
	return "3 processes", nil
}

func (f *fakeFreeze) Renew() {
	f.exec.mu.Lock()
	defer f.exec.mu.Unlock()
	if f.cause == "" && f.lease != nil {
		f.renewed = time.Now()
		f.lease.Reset(f.task.Lease)
	}
}

func (f *fakeFreeze) Thaw() error {
	if err := f.exec.pass(context.Background(), "thaw"); err != nil {
		return err
	}
	f.exec.mu.Lock()
	if f.exec.stubbed > 0 {
		f.exec.stubbed--
		f.exec.mu.Unlock()
		return errors.New("it is stuck")
	}
	f.exec.mu.Unlock()
	f.undo("asked")
	return nil
}

func (f *fakeFreeze) undo(cause string) {
	f.exec.mu.Lock()
	defer f.exec.mu.Unlock()
	if f.cause != "" {
		return
	}
	f.cause, f.thawed = cause, time.Now()
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.lease != nil {
		f.lease.Stop()
	}
	close(f.done)
}

func (f *fakeFreeze) Done() <-chan struct{} { return f.done }
func (f *fakeFreeze) Err() error            { return nil }

func (f *fakeFreeze) Cause() string {
	f.exec.mu.Lock()
	defer f.exec.mu.Unlock()
	return f.cause
}

// freezes are copies of what it has had to do.
func (x *fakeExecutor) freezes() []fakeFreeze {
	x.mu.Lock()
	defer x.mu.Unlock()
	var list []fakeFreeze
	for _, f := range x.spans {
		list = append(list, *f)
	}
	return list
}

// isFrozen reports whether anything is.
func (x *fakeExecutor) isFrozen() bool {
	for _, f := range x.freezes() {
		if !f.frozen.IsZero() && f.thawed.IsZero() {
			return true
		}
	}
	return false
}

func (n *adminFake) OpenOrder(context.Context, OrderRequest, string) (uint64, error) {
	return 0, n.failure()
}

func (n *adminFake) FollowOrder(context.Context, uint64, string) (OrderInfo, error) {
	return OrderInfo{}, n.failure()
}

func (n *adminFake) AbandonOrder(uint64) {}

func (n *adminFake) Orders(context.Context, bool) ([]OrderInfo, error) { return nil, n.failure() }

func (n *adminFake) Thaw(context.Context, ThawRequest, string) ([]OrderInfo, error) {
	return nil, n.failure()
}
