package freezer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// The actions of an [Executor].
const (
	// ActionFreeze stops processes. Its spec is
	//
	//	{"targets":[{"kind":"tree","pids":[4711]},...],"partial":false,"patience_ms":500}
	//
	// where only the targets have to be there: see [Target] and [Order].
	ActionFreeze = "freeze"
	// ActionFSFreeze freezes file systems. Its spec is {"mounts":["/data",...]}.
	ActionFSFreeze = "fsfreeze"
)

// maxSpec bounds a spec, in bytes.
const maxSpec = 8 << 10

// ErrOff is returned when an action is not allowed on this host.
var ErrOff = errors.New("this executor is off")

// ExecutorConfig says what an [Executor] may do, and how.
type ExecutorConfig struct {
	// Procs allows to stop processes, and FS to freeze file systems.
	Procs, FS bool
	// HooksDir is the directory of the programs that are run before a freeze and after
	// the thaw: see [Executor]. "" is none.
	HooksDir string
	// HookTimeout is how long one of them may take; too short, and what it has to bring
	// to rest is not; too long, and all other nodes of an order wait for one that hangs.
	// 0 is DefaultHookTimeout.
	HookTimeout time.Duration
	// Dir is the directory for journals: see [Start].
	Dir string
	// Protect lists paths whose file systems are never frozen, as in [Order]. Those of
	// files that this process writes are not in any case.
	Protect []string
	// Except lists processes that run on, with those that they descend from. Nil is
	// none. This process, and who reads its output, do so in any case.
	Except func() []int
	// Log gets what nobody waits for: what was adopted, was thawed from a journal, or
	// has failed. args are names and values in turn. Nil is nobody.
	Log func(text string, args ...any)
}

// DefaultHookTimeout is how long a hook may take.
const DefaultHookTimeout = 30 * time.Second

// Executor carries out on this host what others ask for: each order is prepared,
// frozen and thawed, and has a guard of its own. It watches over all guards of the
// host, also those of freezes that it was not asked for: what one of them holds that
// is killed is thawed at once, and not only by the next who starts a guard.
//
// The executables of the hooks directory are run with the argument "freeze" when an
// order is prepared, and "thaw" when all is thawed, in the order of their names and
// in reverse. They find the order's number, the action and the targets, one a line,
// in LOCKERD_ORDER, LOCKERD_ACTION and LOCKERD_TARGETS. If one fails, or takes too
// long, nothing is frozen, and those that have begun, this one too, are run with
// "thaw". That runs as well when this process was killed meanwhile: the next Executor
// sees to it, and before that ends a hook that was running then, with its process group.
type Executor struct {
	config ExecutorConfig
	hooks  *hooks // nil for none
	watch  *watch // nil if all is off

	closing context.Context // ends with Close
	close   context.CancelCauseFunc
	givenUp context.Context // ends when Close waits no longer
	giveUp  context.CancelFunc
	mu      sync.Mutex
	orders  map[*Prepared]bool
	warned  map[string]bool // of what guards lack
	work    sync.WaitGroup
}

// closePatience is how long Close waits for guards to thaw, and then for all else.
const closePatience = 3 * time.Second

// NewExecutor thaws what killed guards have left, takes over the watch, and refuses
// hooks that others than root could have made ([ErrHook]).
func NewExecutor(c ExecutorConfig) (*Executor, error) {
	if c.Dir == "" {
		c.Dir = Dir()
	}
	if c.Log == nil {
		c.Log = func(string, ...any) {}
	}
	x := &Executor{config: c, orders: map[*Prepared]bool{}, warned: map[string]bool{}}
	x.closing, x.close = context.WithCancelCause(context.Background())
	x.givenUp, x.giveUp = context.WithCancel(context.Background())
	if !c.Procs && !c.FS {
		return x, nil
	}
	if os.Geteuid() != 0 {
		return nil, ErrPermission
	}
	x.config.Protect = nil
	for _, p := range c.Protect {
		dir, err := filepath.Abs(p)
		if err != nil {
			return nil, fmt.Errorf("protect %s: %w", p, err)
		}
		x.config.Protect = append(x.config.Protect, dir)
	}
	dir, err := openDir(c.Dir)
	if err != nil {
		return nil, err
	}
	if c.HooksDir != "" {
		if x.hooks, err = newHooks(c, dir); err != nil {
			return nil, err
		}
	}
	if x.watch, err = newWatch(dir, c.Log); err != nil {
		return nil, err
	}
	if x.hooks != nil {
		x.work.Go(x.hooks.recover)
	}
	return x, nil
}

// Detached lists the freezes of this host whose requesters have gone, and that last
// until their deadline.
func (x *Executor) Detached() ([]State, error) {
	all, err := List(x.config.Dir)
	found := []State{}
	for _, s := range all {
		if s.Detached {
			found = append(found, s)
		}
	}
	return found, err
}

// Close thaws all that the executor holds, waits for that and for the hooks, and
// leaves the detached freezes to their guards. It does not wait for ever: guards that a
// disk, or somebody, keeps from thawing have a few seconds, and hooks as long as they may
// take. The error then is [ErrNotThawed] and says what may still be frozen; its guards
// thaw when they can.
func (x *Executor) Close() error {
	x.mu.Lock()
	x.close(errExecutorClosed)
	all := x.held()
	x.mu.Unlock()
	errs := make([]error, len(all))
	var thaws sync.WaitGroup
	for i, p := range all {
		thaws.Go(func() {
			if errs[i] = p.thaw(closePatience); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", p, errs[i])
			}
		})
	}
	thaws.Wait()
	x.giveUp()
	patience := closePatience
	if x.hooks != nil {
		patience += x.hooks.longest()
	}
	if !within(patience, x.work.Wait) {
		x.mu.Lock()
		for _, p := range x.held() {
			errs = append(errs, fmt.Errorf("%s: %w, as far as is known", p, ErrNotThawed))
		}
		x.mu.Unlock()
	}
	if x.watch != nil && !within(closePatience, x.watch.close) {
		errs = append(errs, fmt.Errorf("%w: what a killed guard has left", ErrNotThawed))
	}
	return errors.Join(errs...)
}

// held are the orders that are not over. The caller has the lock.
func (x *Executor) held() []*Prepared {
	return slices.SortedFunc(maps.Keys(x.orders), func(a, b *Prepared) int { return cmp.Compare(a.number, b.number) })
}

// within says whether f has returned in time. Else it goes on, as long as the process.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// warn tells of what guards lack, once for all orders: it is the host that lacks it.
func (x *Executor) warn(order uint64, warnings []string) {
	for _, w := range warnings {
		x.mu.Lock()
		known := x.warned[w]
		x.warned[w] = true
		x.mu.Unlock()
		if !known {
			x.config.Log("guards are weaker here than they should be", "order", order, "why", w)
		}
	}
}

var errExecutorClosed = errors.New("the executor is shutting down")

// Prepare gets ready to carry out an order: a guard has opened all that it is for, the
// hooks have run, and what can be refused has been. Nothing is frozen before
// [Prepared.Freeze]; whoever does not call that calls Thaw. timeout counts from
// Freeze on; less than 0 is for ever, and 0 DefaultTimeout. lease is how long the guard
// then goes without a [Prepared.Renew]; 0 is for ever.
func (x *Executor) Prepare(ctx context.Context, order uint64, action string, spec []byte, timeout, lease time.Duration) (*Prepared, error) {
	o, err := x.read(action, spec)
	if err != nil {
		return nil, err
	}
	o.Timeout, o.Lease = timeout, lease
	if err := o.Validate(); err != nil {
		return nil, err // before a guard is started for it
	}
	o.Protect = append(openForWriting(), x.config.Protect...)
	if o.Except, err = x.except(&o); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(x.closing, func() { cancel(errExecutorClosed) })()
	p := &Prepared{executor: x, number: order, order: o, done: make(chan struct{})}
	if p.guard, err = Start(ctx, x.config.Dir); err != nil {
		return nil, err
	}
	if !x.admit(p) {
		p.guard.Close()
		return nil, errExecutorClosed
	}
	err = p.guard.Prepare(ctx, o)
	if err == nil && x.hooks != nil {
		if p.hooks, err = x.hooks.freeze(ctx, order, action, o.Targets); err == nil && p.hooks != nil {
			// Again, for what the hooks have written, and for who has ended of it.
			err = p.guard.Prepare(ctx, o)
		}
	}
	go p.attend()
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		p.guard.Close()
		return nil, err
	}
	return p, nil
}

// admit takes note of an order, unless the executor is closed.
func (x *Executor) admit(p *Prepared) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closing.Err() != nil {
		return false
	}
	x.work.Add(1)
	x.orders[p] = true
	return true
}

// read makes an order of a spec.
func (x *Executor) read(action string, spec []byte) (o Order, err error) {
	switch {
	case action == ActionFreeze && !x.config.Procs:
		return o, fmt.Errorf("%w: to have processes frozen here, start lockerd with --executors procs", ErrOff)
	case action == ActionFSFreeze && !x.config.FS:
		return o, fmt.Errorf("%w: to have file systems frozen here, start lockerd with --executors fs", ErrOff)
	case action == ActionFreeze:
		var s struct {
			Targets  []Target `json:"targets"`
			Partial  bool     `json:"partial"`
			Patience int64    `json:"patience_ms"`
		}
		if err := readSpec(spec, &s); err != nil {
			return o, err
		}
		if s.Patience < 0 || s.Patience > maxWithin.Milliseconds() {
			return o, fmt.Errorf("%w: a patience of %d ms", ErrOrder, s.Patience)
		}
		o = Order{Targets: s.Targets, Partial: s.Partial, Patience: time.Duration(s.Patience) * time.Millisecond}
		for _, t := range s.Targets {
			if t.Kind == KindFileSystem {
				return o, fmt.Errorf("%w: %s is for %s, not %s", ErrOrder, t, ActionFSFreeze, ActionFreeze)
			}
		}
	case action == ActionFSFreeze:
		var s struct {
			Mounts []string `json:"mounts"`
		}
		if err := readSpec(spec, &s); err != nil {
			return o, err
		}
		for _, m := range s.Mounts {
			o.Targets = append(o.Targets, FileSystem(m))
		}
	default:
		return o, fmt.Errorf("%w: no action is called %q here", ErrOrder, action)
	}
	return o, o.Validate()
}

func readSpec(spec []byte, into any) error {
	if len(spec) > maxSpec {
		return fmt.Errorf("%w: a spec of more than %d bytes", ErrOrder, maxSpec)
	}
	in := json.NewDecoder(bytes.NewReader(spec))
	in.DisallowUnknownFields()
	if err := in.Decode(into); err != nil {
		return fmt.Errorf("%w: the spec: %w", ErrOrder, err)
	}
	if _, err := in.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows the spec", ErrOrder)
	}
	return nil
}

// except lists who has to run on whatever the order says. The guard itself sees to
// this process, to those that it descends from, and to other guards.
func (x *Executor) except(o *Order) ([]int, error) {
	proc, err := openProc()
	if err != nil {
		return nil, err
	}
	defer proc.close()
	var all []int
	if x.config.Except != nil {
		all = proc.lineage(x.config.Except())
	}
	for _, t := range o.Targets {
		if t.Kind == KindMachine {
			readers, err := proc.readers()
			return append(all, readers...), err
		}
	}
	return all, nil
}
