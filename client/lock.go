package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockerd/lockerd/transport"
)

// cancelTime bounds the withdrawal of a request whose caller has given up.
const cancelTime = time.Second

// maxChecks bounds how many dead processes one wait reports: each costs a
// connection, and the server says how many there are.
const maxChecks = 16

// Lock waits for the lock. It returns at once with nil while the lock is held.
// When ctx ends the request is withdrawn, which takes up to a second more.
func (l *Locker) Lock(ctx context.Context) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	if l.held != nil && l.view.Load() != nil && !l.held.hasLost() {
		return nil
	}
	if l.held != nil {
		// What an Unlock left behind that was not sure, or a loss.
		if err := l.unlock(ctx); !isOver(err) {
			return err
		}
	}
	a := &attempt{Locker: l, retries: l.retries()}
	if a.id = l.opts.Request; a.id == [16]byte{} {
		rand.Read(a.id[:])
		a.counts = true
	}
	if w := l.opts.WaitLimit; w > 0 && !l.opts.Try {
		a.until = time.Now().Add(w)
		limited, cancel := context.WithDeadlineCause(ctx, a.until, ErrTimeout)
		defer cancel()
		ctx = limited
	}
	err := l.do(ctx, a.retries, func(c *conn) error {
		a.queued = false
		err := a.ask(ctx, c)
		if err != nil {
			c.close()
		}
		if a.queued {
			a.retries.left = l.opts.ConnectTries
			a.retries.hurry()
		}
		return err
	})
	if err != nil {
		if a.adrift {
			a.disown()
		}
		return err
	}
	l.held = a.hold
	l.view.Store(a.hold)
	return nil
}

// attempt is one Lock, over all the connections that it takes.
type attempt struct {
	*Locker
	retries *retries
	id      [16]byte
	counts  bool      // id is of this attempt alone, so that its requests have turns
	turn    uint64    // of the latest request
	adrift  bool      // a request may be at a server that we have lost, and be granted when nobody wants it
	until   time.Time // end of the wait; zero if it has none
	queued  bool      // the present server has, or may have, a place for us
	waited  bool      // Hooks.Waiting has been told
	checked map[int32]bool
	hold    *hold
}

// ask asks one server and waits for its answer. With a grant the connection
// belongs to a.hold, otherwise to the caller.
func (a *attempt) ask(ctx context.Context, c *conn) error {
	if a.opts.extras() {
		if err := c.handshake(ctx); err != nil {
			return err
		}
		if c.proto != 2 {
			return fmt.Errorf("%w: %v is one of IPC::Locker, which has no shared or slot locks, all-of, leases or fences", ErrUnsupported, c.at)
		}
	}
	asked := bootTime()
	if a.counts {
		a.turn++
	}
	if err := c.request(a.request(), false); err != nil {
		a.lose(c)
		return err
	}
	// A server that works says at once that it speaks proto 2, that the lock is
	// busy, or that it is ours.
	silence := time.NewTimer(answerTime)
	defer silence.Stop()
	for {
		r, err := c.next(ctx, silence.C)
		switch {
		case errors.Is(err, errSilent):
			a.lose(c)
			return again("lock server %v: %w", c.at, err)
		case err != nil && ctx.Err() != nil:
			a.withdraw(c)
			return err
		case err != nil:
			a.lose(c)
			return err
		}
		silence.Stop()
		switch r.Kind {
		case transport.ReplyWaiting:
			a.queued = true
			if !a.waited && a.opts.Hooks.Waiting != nil {
				a.opts.Hooks.Waiting(r.Owner)
			}
			a.waited = true
		case transport.ReplyPlace:
			if a.opts.Hooks.Place != nil {
				a.opts.Hooks.Place(r.Place)
			}
		case transport.ReplyCheck:
			a.check(ctx, c, r)
		case transport.ReplyMoved:
			a.servers.moved(c.at, r.Addrs)
			a.queued = true
			a.lose(c)
			return again("lock server %v is stopping", c.at)
		case transport.ReplyStatus:
			return a.settle(c, r.Status, asked)
		}
	}
}

func (a *attempt) request() *transport.Request {
	q := a.basic(transport.VerbLock)
	q.Block = !a.opts.Try
	q.ID, q.Turn = a.id, a.turn
	q.Start, q.Boot = a.start, a.boot
	q.Lease = a.opts.Lease
	if a.opts.All {
		q.Choice = transport.ChoiceAll
	}
	switch {
	case a.opts.Shared:
		q.Mode = transport.ModeShared
	case a.opts.Slots > 0:
		q.Mode, q.Slots = transport.ModeSlots, a.opts.Slots
	}
	if !a.until.IsZero() {
		q.Wait = max(time.Until(a.until), time.Millisecond)
	}
	return &q
}

// settle acts on the status block that ends a LOCK.
func (a *attempt) settle(c *conn, st transport.Status, asked time.Duration) error {
	if st.Fault != nil {
		err := fromFault(st.Fault)
		switch st.Fault.Word {
		case transport.WordCancelled, transport.WordLost:
			// Not by us: the node's ticket had ended, or the grant on its way to us.
			err = again("lock server %v answered %w", c.at, st.Fault)
		}
		return err
	}
	if !st.Locked {
		if a.opts.Try {
			return fmt.Errorf("%w: %s", ErrBusy, orNobody(st.Owner))
		}
		return again("lock server %v answered neither with a grant nor with a reason", c.at)
	}
	if err := a.verify(c, st); err != nil {
		return err
	}
	since := asked
	if a.queued {
		since = bootTime()
	}
	if a.queued && a.opts.Lease > 0 {
		// The lease has begun at some time during the wait: begin it anew.
		var err error
		if since, err = a.renew(c, st); err != nil {
			return err
		}
	}
	if a.waited && a.opts.Hooks.Obtained != nil {
		a.opts.Hooks.Obtained()
	}
	a.hold = newHold(a.Locker, c, st, a.id, since)
	return nil
}

// renew proves us alive and says since when, on the boot clock.
func (a *attempt) renew(c *conn, granted transport.Status) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), a.opts.Lease)
	defer cancel()
	sent := bootTime()
	q := a.basic(transport.VerbRenew)
	q.Locks, q.Fence, q.ID = granted.Locks, granted.Fence, a.id
	if err := c.request(&q, false); err != nil {
		return 0, err
	}
	st, err := c.status(ctx, nil)
	if err != nil {
		return 0, again("lock server %v: %w", c.at, err)
	}
	if !st.Locked || st.Fence != granted.Fence {
		return 0, again("lock server %v: the lease ran out before the grant reached us", c.at)
	}
	return sent, nil
}

// verify refuses a grant of something that was not asked for.
func (a *attempt) verify(c *conn, st transport.Status) error {
	ok := st.Owner == a.opts.User && len(st.Locks) > 0 && (c.proto == 1 || st.Fence != 0)
	for _, name := range st.Locks {
		ok = ok && slices.Contains(a.opts.Locks, name)
	}
	if a.opts.All {
		for _, name := range a.opts.Locks {
			ok = ok && slices.Contains(st.Locks, name)
		}
	} else {
		ok = ok && len(st.Locks) == 1
	}
	if !ok {
		return fmt.Errorf("%w: %v granted %q to %q with fence %d, which nobody asked for",
			ErrRefused, c.at, st.Locks, st.Owner, st.Fence)
	}
	return nil
}

// lose notes that what a server makes of our request is not known. A request with
// an id that others may use is theirs as well, and a server of IPC::Locker has no ids.
func (a *attempt) lose(c *conn) {
	a.adrift = a.adrift || a.counts && c.proto != 1
}

// withdraw makes sure that a request whose caller has given up takes no lock:
// not even if the grant is on its way to us.
func (a *attempt) withdraw(c *conn) {
	a.adrift = a.adrift || c.proto == 1 || !a.cancel(c)
}

// disown gives the request up from another connection, and with it whatever has
// come of it at servers that we have lost.
func (a *attempt) disown() {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()
	// A server of IPC::Locker forgets a waiter that hangs up, but keeps a lock that
	// it has granted: so give it up from another connection.
	_ = a.walk(ctx, func(c *conn) error {
		defer c.close()
		q := a.basic(transport.VerbUnlock)
		q.ID = a.id
		if err := c.request(&q, false); err != nil {
			return err
		}
		_, err := c.status(ctx, nil)
		return err
	})
}

// cancel withdraws on the connection itself, and says whether the server has
// confirmed it. A grant that crossed with it comes first.
func (a *attempt) cancel(c *conn) bool {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()
	if c.send([]byte("CANCEL\n\n")) != nil {
		return false
	}
	for {
		st, err := c.status(ctx, nil)
		if err != nil {
			return false
		}
		if !st.Locked {
			return true
		}
	}
}

// check answers autounlock_check: if the holder was a process of this host and is
// dead, the server is told, on a connection of its own because this one waits.
func (a *attempt) check(ctx context.Context, c *conn, r transport.Reply) {
	if !a.opts.Autounlock || !r.DeadPID || r.Host != a.host || a.checked[r.PID] ||
		len(a.checked) >= maxChecks || !isDead(int(r.PID)) {
		return
	}
	if a.checked == nil {
		a.checked = make(map[int32]bool)
	}
	a.checked[r.PID] = true
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	second, err := dial(ctx, c.at, &a.opts)
	if err != nil {
		return // a hint: the servers find out without us, later
	}
	defer second.close()
	q := transport.Request{Verb: transport.VerbDeadPID, User: a.opts.User, Proto: 1, DeadHost: r.Host, DeadPID: r.PID}
	if second.send(q.Append(nil, true)) != nil {
		return
	}
	// It has no answer, but the server closes when it has read it.
	select {
	case <-second.ended:
	case <-ctx.Done():
	}
}

func orNobody(owner string) string {
	if owner == "" {
		return "held by a nameless owner"
	}
	return "held by " + owner
}

func isNoLeader(err error) bool {
	var f *transport.Fault
	return errors.As(err, &f) && f.Word == transport.WordNoLeader
}
