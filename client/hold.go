package client

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/transport"
)

const (
	// pingInterval is the time between two proofs that the server is there, and
	// pingAnswer how long one may take: a server cut off without a word is noticed
	// within their sum.
	pingInterval = 3 * time.Second
	pingAnswer   = 5 * time.Second

	// minLease leaves time for an election between two renewals.
	minLease = 2 * time.Second
)

// Causes of a loss, as servers name them.
const (
	CauseLimit     = "limit"     // the hold limit has passed
	CauseLease     = "lease"     // the lease could not be renewed
	CauseBroken    = "broken"    // somebody broke it
	CauseProcess   = "process"   // the process that owned it has ended
	CauseSuspended = "suspended" // its job has been put on disk, and the lock is kept for it
	CauseOwner     = "owner"     // released by another request of the same owner
	CauseUnknown   = "unknown"   // it was gone when we could ask again
)

// Loss says how a hold ended without Unlock.
type Loss struct {
	Cause string
	By    string // with CauseBroken and CauseSuspended: who did it, if the server knows
}

func (l Loss) String() string {
	if l.By != "" {
		return l.Cause + " by " + l.By
	}
	return l.Cause
}

// hold is one grant, with the goroutine that keeps in touch with the cluster
// about it.
//
// Invariant: the keeper owns conn while it runs; after retire the caller does.
type hold struct {
	l     *Locker
	locks []string
	fence uint64
	id    [16]byte
	proto int
	at    endpoint      // who granted it
	since time.Duration // its beginning on the boot clock, if anything too early

	conn *conn
	lost chan Loss
	loss Loss // once gone
	gone atomic.Bool
	shut bool // lost has been closed without a loss

	released bool // a server may have been asked to end it

	stop context.CancelFunc
	done chan struct{}
}

// newHold takes over a connection that has just read a grant.
func newHold(l *Locker, c *conn, st transport.Status, id [16]byte, since time.Duration) *hold {
	h := &hold{
		l: l, locks: st.Locks, fence: st.Fence, id: id, proto: c.proto, at: c.at, since: since,
		lost: make(chan Loss, 1),
		done: make(chan struct{}),
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	if h.proto == 1 {
		// A server of IPC::Locker gets slower with every connection it has, and has
		// nothing to say on ours.
		c.close()
		go h.keepOld(ctx)
		return h
	}
	h.conn = c
	go h.keep(ctx)
	return h
}

// retire ends the keeper. It may be called again.
func (h *hold) retire() {
	h.stop()
	<-h.done
	if !h.gone.Load() && !h.shut {
		h.shut = true
		close(h.lost)
	}
}

func (h *hold) hasLost() bool { return h.gone.Load() }

// lose is called by the keeper alone, once, before it ends.
func (h *hold) lose(loss Loss) {
	h.loss = loss
	h.gone.Store(true)
	h.lost <- loss
	close(h.lost)
}

// keepOld watches the one thing that is known of a hold on a server of IPC::Locker.
func (h *hold) keepOld(ctx context.Context) {
	defer close(h.done)
	limit := h.l.opts.HoldLimit
	if limit == 0 {
		return
	}
	for {
		left := limit - (bootTime() - h.since)
		if left <= 0 {
			h.lose(Loss{Cause: CauseLimit})
			return
		}
		if sleep(ctx, min(left, time.Second)) != nil {
			return
		}
	}
}

// keep runs until retire or until the hold is lost.
func (h *hold) keep(ctx context.Context) {
	defer close(h.done)
	renewed := h.since
	for {
		if h.conn == nil {
			loss, err := h.reattach(ctx, &renewed)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				h.lose(loss)
				return
			}
		}
		h.proven(renewed)
		loss, err := h.attend(ctx, &renewed)
		if err == nil {
			h.lose(loss)
			return
		}
		if ctx.Err() != nil {
			return
		}
		h.conn.close()
		h.conn = nil
	}
}

// proven tells whoever wants to know how long a lease lasts now.
func (h *hold) proven(renewed time.Duration) {
	if lease := h.l.opts.Lease; lease > 0 && h.l.opts.Hooks.Renewed != nil {
		h.l.opts.Hooks.Renewed(renewed + lease)
	}
}

// attend listens on the connection and proves both ends alive to each other. It
// returns a nil error with a loss, otherwise why it stopped: ctx, or the connection.
func (h *hold) attend(ctx context.Context, renewed *time.Duration) (Loss, error) {
	interval, answer := pingInterval, pingAnswer
	lease := h.l.opts.Lease
	if lease > 0 {
		interval, answer = min(interval, lease/4), min(answer, lease/4)
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	if limit := h.l.opts.HoldLimit; limit > 0 {
		// A server that is out of reach can't say that it is over.
		alarm := time.AfterFunc(limit-(bootTime()-h.since), func() { timer.Reset(0) })
		defer alarm.Stop()
	}
	var (
		sent    time.Duration // when the proof under way was asked for
		pending bool
	)
	for {
		r, err := h.conn.next(ctx, timer.C)
		now := bootTime()
		if loss, left := h.left(*renewed); left <= 0 {
			return loss, nil
		}
		switch {
		case errors.Is(err, errSilent) && pending:
			h.l.servers.demote(h.conn.at)
			return Loss{}, again("lock server %v does not answer", h.conn.at)
		case errors.Is(err, errSilent):
			sent, pending = now, true
			timer.Reset(answer)
			if err := h.prove(lease > 0); err != nil {
				return Loss{}, err
			}
			continue
		case err != nil:
			return Loss{}, err
		}
		switch r.Kind {
		case transport.ReplyPong:
			pending = false
			timer.Reset(interval)
		case transport.ReplyStatus:
			if h.conn.owed == 0 {
				continue
			}
			h.conn.owed--
			pending = false
			timer.Reset(interval)
			if loss, lost := h.judge(r.Status); lost {
				return loss, nil
			}
			if r.Status.Locked {
				*renewed = sent
				h.proven(sent)
			}
		case transport.ReplyLost:
			if r.Fence == h.fence {
				return Loss{Cause: r.Cause, By: r.By}, nil
			}
		case transport.ReplyMoved:
			h.l.servers.moved(h.conn.at, r.Addrs)
			return Loss{}, again("lock server %v is stopping", h.conn.at)
		}
	}
}

// prove asks for a sign of life, and with a lease gives one.
func (h *hold) prove(renew bool) error {
	if !renew {
		return h.conn.send([]byte("PING\n\n"))
	}
	h.conn.owed++
	return h.conn.request(h.renewal(), false)
}

func (h *hold) renewal() *transport.Request {
	q := h.l.basic(transport.VerbRenew)
	q.Locks, q.Fence, q.ID = h.locks, h.fence, h.id
	return &q
}

// judge reads the answer to RENEW: lost for certain, or not.
func (h *hold) judge(st transport.Status) (Loss, bool) {
	if st.Locked {
		return Loss{Cause: CauseUnknown}, st.Fence != h.fence
	}
	if st.Fault != nil && st.Fault.Word != transport.WordLost {
		return Loss{}, false // no leader, stopping: it says nothing about the hold
	}
	if st.Fault != nil && errors.Is(fromFault(st.Fault), ErrSuspended) {
		return Loss{Cause: CauseSuspended}, true
	}
	return Loss{Cause: CauseUnknown}, true
}

// reattach finds a server and makes it tell us about our hold from now on, for as
// long as it takes. A nil error comes with a loss; errAttached with a connection.
func (h *hold) reattach(ctx context.Context, renewed *time.Duration) (Loss, error) {
	r := &retries{pause: firstPause}
	for {
		for _, at := range h.l.servers.order() {
			loss, left := h.left(*renewed)
			if left <= 0 {
				return loss, nil
			}
			asked := bootTime()
			c, st, err := h.renewAt(ctx, at, min(left, pingAnswer))
			if ctx.Err() != nil {
				if c != nil {
					c.close()
				}
				return Loss{}, context.Cause(ctx)
			}
			if err != nil {
				continue
			}
			if loss, lost := h.judge(st); lost {
				c.close()
				return loss, nil
			}
			if !st.Locked {
				c.close()
				continue
			}
			h.l.servers.promote(at)
			h.conn, *renewed = c, asked
			return Loss{}, errAttached
		}
		r.until = time.Now().Add(time.Minute) // we never give up
		pause, _, _ := r.next()
		if _, left := h.left(*renewed); left < pause {
			pause = left
		}
		if sleep(ctx, pause) != nil {
			return Loss{}, context.Cause(ctx)
		}
	}
}

var errAttached = errors.New("attached")

// left is how much longer the hold can be relied upon while nobody can be asked,
// and what its loss is called then: a cluster that we do not reach takes it away
// without us.
func (h *hold) left(renewed time.Duration) (Loss, time.Duration) {
	now := bootTime()
	loss, left := Loss{}, time.Duration(math.MaxInt64)
	if limit := h.l.opts.HoldLimit; limit > 0 {
		loss, left = Loss{Cause: CauseLimit}, limit-(now-h.since)
	}
	if lease := h.l.opts.Lease; lease > 0 {
		if l := lease - lease/4 - (now - renewed); l < left {
			loss, left = Loss{Cause: CauseLease}, l
		}
	}
	return loss, left
}

func (h *hold) renewAt(ctx context.Context, at endpoint, patience time.Duration) (*conn, transport.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := dial(ctx, at, &h.l.opts)
	if err != nil {
		return nil, transport.Status{}, err
	}
	var st transport.Status
	if err = c.request(h.renewal(), false); err == nil {
		st, err = c.status(ctx, nil)
	}
	if err != nil {
		c.close()
		return nil, transport.Status{}, err
	}
	return c, st, nil
}

// Clock is the time by which leases go, CLOCK_BOOTTIME.
func Clock() time.Duration { return bootTime() }

// bootTime is the time since boot, including what the machine slept through: a
// lease goes on while a laptop is shut.
func bootTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Duration(time.Now().UnixNano()) // no such kernel since 2.6.39
	}
	return time.Duration(ts.Nano())
}
