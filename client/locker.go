package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
	"github.com/lockerd/lockerd/transport"
)

// closeTime bounds what Close does on the wire.
const closeTime = 5 * time.Second

// Locker takes one lock for one owner. Its methods may be called from several
// goroutines; Lock, Unlock and Close wait for each other.
type Locker struct {
	opts    Options
	servers servers
	host    string
	boot    string
	start   uint64

	turn   chan struct{} // holds a token while nobody changes what follows
	held   *hold         // what the last Lock got, until Unlock is sure
	closed bool

	view atomic.Pointer[hold] // what the methods that do not wait look at
}

// New prepares a Locker. Nothing is asked of a server yet.
func New(o Options) (*Locker, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	list, err := o.endpoints()
	if err != nil {
		return nil, err
	}
	l := &Locker{opts: o, servers: servers{list: list}, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	l.host = FQDN()
	l.boot = pidprobe.Here()
	if p, err := pidprobe.Lookup(int32(o.PID)); err == nil {
		l.start = p.Start
	}
	return l, nil
}

// Acquire is New and Lock.
func Acquire(ctx context.Context, o Options) (*Locker, error) {
	l, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := l.Lock(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Locker) take(ctx context.Context) error {
	select {
	case <-l.turn:
	default:
		select {
		case <-l.turn:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if l.closed {
		l.give()
		return ErrClosed
	}
	return nil
}

func (l *Locker) give() { l.turn <- struct{}{} }

// User is the owner that this Locker asks for.
func (l *Locker) User() string { return l.opts.User }

// Locked says whether the lock is held: granted, and since then neither given up
// nor lost.
func (l *Locker) Locked() bool {
	h := l.view.Load()
	return h != nil && !h.hasLost()
}

// LockName is the lock that is held, the first of them if there are several, or
// the first that is wanted while none is.
func (l *Locker) LockName() string {
	if h := l.view.Load(); h != nil {
		return h.locks[0]
	}
	return l.opts.Locks[0]
}

// LockNames are all the locks that are held, none if none is.
func (l *Locker) LockNames() []string {
	if h := l.view.Load(); h != nil {
		return append([]string(nil), h.locks...)
	}
	return nil
}

// Fence is the fencing token of the hold, 0 if there is none.
func (l *Locker) Fence() uint64 {
	if h := l.view.Load(); h != nil {
		return h.fence
	}
	return 0
}

// Lost is the channel on which the news comes that the present hold has ended
// without Unlock, once; it is closed by Unlock and Close. Nil while nothing is held.
func (l *Locker) Lost() <-chan Loss {
	if h := l.view.Load(); h != nil {
		return h.lost
	}
	return nil
}

// Unlock gives the lock up. It does nothing when none is held. ErrLost says that
// the hold had ended before, so that others may have been in meanwhile, and
// ErrUncertain that it is over and this is not known. After another error the outcome
// is unknown: the lock counts as not held, and Unlock can be called again.
func (l *Locker) Unlock(ctx context.Context) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	return l.unlock(ctx)
}

func (l *Locker) unlock(ctx context.Context) error {
	h := l.held
	if h == nil {
		return nil
	}
	l.view.Store(nil)
	h.retire()
	if h.hasLost() {
		if h.conn != nil {
			h.conn.close() // over which the loss was told, as a rule
		}
		l.held = nil
		if h.loss.Cause == CauseSuspended {
			return ErrSuspended
		}
		return ErrLost
	}
	err := l.release(ctx, h)
	if isOver(err) {
		l.held = nil
	}
	return err
}

// isOver reports whether nothing is held after an Unlock that has returned err.
func isOver(err error) bool {
	return err == nil || errors.Is(err, ErrLost) || errors.Is(err, ErrUncertain)
}

func (l *Locker) release(ctx context.Context, h *hold) error {
	once := func(c *conn) error {
		defer c.close()
		q := l.basic(transport.VerbUnlock)
		q.Locks, q.Fence, q.ID = h.locks, h.fence, h.id
		if h.proto == 1 {
			q.Proto = 1
		}
		if err := c.request(&q, false); err != nil {
			return err
		}
		repeated := h.released
		h.released = true
		var loss Loss
		st, err := c.status(ctx, func(r transport.Reply) {
			if r.Kind == transport.ReplyLost && r.Fence == h.fence {
				loss = Loss{Cause: r.Cause, By: r.By}
			}
		})
		if err != nil {
			return err
		}
		if st.Fault == nil {
			return nil
		}
		err = fromFault(st.Fault)
		switch {
		case !errors.Is(err, ErrLost), errors.Is(err, ErrSuspended):
			return err
		case repeated && loss.Cause == CauseOwner:
			return nil // that was our own earlier request
		case loss.Cause == CauseSuspended:
			return ErrSuspended // and another one has it by now
		case loss.Cause != "":
			return fmt.Errorf("%w: %v", ErrLost, loss)
		case repeated:
			return ErrUncertain
		}
		return err
	}
	if c := h.conn; c != nil {
		h.conn = nil
		if err := once(c); !errors.Is(err, errAgain) {
			return err
		}
	}
	r := l.retries()
	r.hurry()
	return l.do(ctx, r, once)
}

// Close gives the lock up, unless Options.KeepOnClose says not to or another
// process owns it, and ends everything of this Locker. It takes 5 s at most.
func (l *Locker) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := l.take(ctx); err != nil {
		if errors.Is(err, ErrClosed) {
			return nil
		}
		return err
	}
	defer l.give()
	l.closed = true
	if l.held == nil {
		return nil
	}
	if !l.opts.KeepOnClose && l.opts.PID == os.Getpid() {
		return l.unlock(ctx)
	}
	l.view.Store(nil)
	l.held.retire()
	if l.held.conn != nil {
		l.held.conn.close()
	}
	l.held = nil
	return nil
}

// basic is a request with what all have in common.
func (l *Locker) basic(v transport.Verb) transport.Request {
	return transport.Request{
		Verb:       v,
		Proto:      2,
		User:       l.opts.User,
		Locks:      l.opts.Locks,
		Timeout:    l.opts.HoldLimit,
		Autounlock: l.opts.Autounlock,
		Host:       l.host,
		PID:        int32(l.opts.PID),
	}
}

func (l *Locker) retries() *retries {
	return &retries{left: l.opts.ConnectTries, delay: l.opts.ConnectDelay}
}
