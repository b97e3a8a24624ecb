package client

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Grant is what has to be known of a hold to take it over.
type Grant struct {
	Locks []string
	Fence uint64
	ID    [16]byte
	Since time.Duration // its beginning or last renewal, on CLOCK_BOOTTIME
}

// Grant is the present hold, the zero value if there is none.
func (l *Locker) Grant() Grant {
	h := l.view.Load()
	if h == nil {
		return Grant{}
	}
	return Grant{Locks: h.locks, Fence: h.fence, ID: h.id, Since: h.since}
}

// Adopt makes a Locker of a hold that another one has taken, which may be in
// another process: o as that one had them, but for Hosts, of which there must be
// one that reaches the cluster. The news of a loss comes here from now on.
func Adopt(o Options, g Grant) (*Locker, error) {
	if len(g.Locks) == 0 || g.Fence == 0 {
		return nil, errors.New("a hold without a lock or a fence cannot be adopted")
	}
	l, err := New(o)
	if err != nil {
		return nil, err
	}
	h := &hold{
		l: l, locks: g.Locks, fence: g.Fence, id: g.ID, proto: 2, since: g.Since, at: l.servers.order()[0],
		lost: make(chan Loss, 1),
		done: make(chan struct{}),
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go h.keep(ctx)
	l.held = h
	l.view.Store(h)
	return l, nil
}

// Relinquish releases whatever Options.User holds of Options.Locks, whoever has taken
// it for that owner. ErrLost says that it holds none of them.
func (l *Locker) Relinquish(ctx context.Context) error {
	t, err := l.Table(ctx)
	if err != nil {
		return err
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	found := false
	for _, held := range t.Holds {
		if held.Owner != l.opts.User || !slices.ContainsFunc(held.Locks, func(name string) bool { return slices.Contains(l.opts.Locks, name) }) {
			continue
		}
		err := l.release(ctx, &hold{l: l, locks: held.Locks, fence: held.Fence})
		switch {
		case !isOver(err):
			return err
		case !errors.Is(err, ErrLost):
			found = true
		}
	}
	if !found {
		return ErrLost
	}
	return nil
}
