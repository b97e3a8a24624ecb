package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
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

// Transfer makes another process of this host the one that owns the lock, and with
// which it ends. The fence stays the same. After an error the owner may be either
// of the two, and the lock is held as before. Lost returns another channel.
func (l *Locker) Transfer(ctx context.Context, pid int) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	old := l.held
	if old == nil || l.view.Load() == nil || old.hasLost() {
		return ErrLost
	}
	if old.proto == 1 {
		return fmt.Errorf("%w: %v is one of IPC::Locker", ErrUnsupported, old.at)
	}
	p, err := pidprobe.Lookup(int32(pid))
	if err != nil {
		return err
	}
	// The same owner and request, of another process: it keeps the fence.
	to := &Locker{opts: l.opts, servers: servers{list: l.servers.order()}, host: l.host, boot: l.boot, start: p.Start}
	to.opts.PID, to.opts.Try = pid, true
	to.opts.Locks, to.opts.All = old.locks, len(old.locks) > 1
	if limit := l.opts.HoldLimit; limit > 0 {
		to.opts.HoldLimit = max(limit-(bootTime()-old.since), time.Millisecond)
	}
	a := &attempt{Locker: to, retries: l.retries(), id: old.id}
	a.retries.hurry()
	err = to.do(ctx, a.retries, func(c *conn) error {
		err := a.ask(ctx, c)
		if err == nil && a.hold.fence != old.fence {
			err = fmt.Errorf("%w: there is a new one", ErrLost)
			a.hold.retire()
		}
		if err != nil {
			c.close()
		}
		return err
	})
	if err != nil {
		return err
	}
	l.opts.PID, l.start = pid, p.Start
	l.held = a.hold
	l.view.Store(a.hold)
	old.retire()
	if old.conn != nil {
		old.conn.close()
	}
	return nil
}

// Relinquish releases whatever Options.User holds or waits for among Options.Locks,
// whoever has taken it for that owner.
func (l *Locker) Relinquish(ctx context.Context) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	return l.release(ctx, &hold{l: l, locks: l.opts.Locks})
}
