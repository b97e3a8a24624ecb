package cluster

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

// slowLock is how long a LOCK may be on its way to the leader before the session
// looks whether its client is still there. A client that only ends its side, and
// reads on, counts as gone while it waits: this must be longer than a busy disk
// takes to commit.
const slowLock = time.Second

// cancelWait is how long the answer to who gives up may wait for the cluster: who has it
// finds nothing of the request in the table any more, as a rule. Clients wait a
// second for it.
const cancelWait = 750 * time.Millisecond

// Why a LOCK ends without a grant.
var (
	errHungUp     = errors.New("the client has hung up")
	errSuperseded = faultf(transport.WordSuperseded, "asked for again on another connection")

	// Nothing but CANCEL is answered with this word: clients tell its answer by it.
	errCancelled = faultf(transport.WordCancelled, "as asked")
)

// lock executes LOCK, and reports whether the session goes on.
func (s *session) lock(q transport.Request) bool {
	s.last = nil
	if len(q.Locks) == 0 {
		if !q.Block {
			return s.answer(transport.Status{})
		}
		// IPC::Locker lets such a client wait for ever.
		return s.refuse(faultf(transport.WordBadRequest, "LOCK names no lock"))
	}
	if s.flush() != nil {
		return false
	}
	s.waitEnd = time.Time{}
	if q.Wait > 0 {
		s.waitEnd = time.Now().Add(q.Wait)
	}
	h := &sessionHold{request: q}
	res, err := s.acquire(h)
	if errors.Is(err, errHungUp) {
		return false
	}
	if err != nil {
		return s.refuse(fault(err))
	}
	for _, c := range res.Checks {
		s.out = transport.AppendCheck(s.out, c.Lock, c.Process.Host, c.Process.PID)
	}
	switch res.Code {
	case fsm.Granted:
		return s.granted(h, res.Fence, res.Locks, false)
	case fsm.Queued:
		place := 0
		if q.Proto >= 2 {
			place = res.Place
		}
		s.out = transport.AppendWaiting(s.out, res.Owner, place)
		s.waiting = true
		goesOn := s.await(h)
		s.waiting = false
		return goesOn
	case fsm.Busy:
		h.claim.Forget()
		return s.answer(transport.Status{Owner: res.Owner})
	case fsm.Superseded:
		h.claim.Forget()
		return s.refuse(errSuperseded)
	}
	h.claim.Forget()
	return s.answer(transport.Status{Owner: res.Owner, Fault: refusal(res)})
}

// acquire makes the request of h. While it takes long, the connection is watched:
// a client that hangs up then must not be granted anything.
func (s *session) acquire(h *sessionHold) (fsm.Result, error) {
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	if !s.waitEnd.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadlineCause(ctx, s.waitEnd, tooSlow(h))
		defer stop()
	}
	over := make(chan struct{})
	watch := time.AfterFunc(slowLock, func() {
		defer close(over)
		s.watch(cancel)
	})
	claim, res, err := s.node.Acquire(ctx, acquire(h.request), func(e fsm.Event) { s.notify(h, e) })
	if !watch.Stop() {
		s.endWatch(over)
	}
	cause := context.Cause(ctx)
	if err != nil {
		if cause == nil {
			return res, err
		}
		if !errors.Is(cause, errHungUp) {
			s.withdraw(claim) // which has begun: who is told that it is given up takes it for done
		}
		return res, cause
	}
	h.claim = claim
	switch {
	case errors.Is(cause, errHungUp):
		claim.Cancel()
		return res, cause
	case errors.Is(cause, errCancelled):
		s.withdraw(claim)
		return res, cause
	}
	return res, nil
}

// withdraw undoes a request that its client has given up, by CANCEL or because the
// time is over that it wanted to wait.
func (s *session) withdraw(c sessionClaim) {
	ctx, cancel := context.WithTimeout(s.ctx, cancelWait)
	defer cancel()
	c.Withdraw(ctx)
}

// watch reads ahead until the request is answered, and gives it up when the
// client has gone or asks for that.
func (s *session) watch(giveUp context.CancelCauseFunc) {
	s.mu.Lock()
	s.watching = true
	s.mu.Unlock()
	for {
		err := s.in.Fill()
		switch f := (*transport.Fault)(nil); {
		case err == nil:
			if s.proto >= 2 && s.in.TakeCancel() {
				giveUp(errCancelled)
				return
			}
		case errors.As(err, &f):
			giveUp(f)
			return
		case !errors.Is(err, errWoken):
			giveUp(errHungUp)
			return
		default:
			s.mu.Lock()
			watched := s.watched
			s.mu.Unlock()
			if watched {
				return
			}
		}
	}
}

func (s *session) endWatch(over <-chan struct{}) {
	s.mu.Lock()
	s.watched = true
	s.conn.SetReadDeadline(past)
	s.mu.Unlock()
	<-over
	s.mu.Lock()
	s.watching, s.watched = false, false
	s.mu.Unlock()
}

// await waits for the grant of h, and reports whether the session goes on. When
// the server stops, a client that knows of moves finds its place in the queue
// again elsewhere, so from then on its hang-up withdraws nothing.
func (s *session) await(h *sessionHold) bool {
	left := false
	for {
		notices := s.news()
		for i, n := range notices {
			if n.hold != h {
				s.heldNews(n)
				continue
			}
			rest := notices[i+1:]
			s.requeue(rest)
			return s.decided(n, rest)
		}
		if s.mustStop() {
			if s.proto < 2 {
				h.claim.Cancel()
				s.moved()
				s.partWith()
				return false
			}
			s.moved()
			left = true
		}
		if !s.waitEnd.IsZero() && !time.Now().Before(s.waitEnd) {
			s.withdraw(h.claim)
			return s.refuse(tooSlow(h))
		}
		if s.proto >= 2 && s.in.TakeCancel() {
			s.withdraw(h.claim)
			return s.refuse(errCancelled)
		}
		err := s.in.Fill()
		if err == nil || errors.Is(err, errWoken) {
			continue
		}
		if left {
			return false
		}
		h.claim.Cancel()
		if f := (*transport.Fault)(nil); errors.As(err, &f) {
			s.lastWords(f)
		}
		return false
	}
}

func tooSlow(h *sessionHold) *transport.Fault {
	return faultf(transport.WordTimeout, "not granted within %v", h.request.Wait)
}

// requeue puts news back that came together with the end of a wait.
func (s *session) requeue(rest []notice) {
	if len(rest) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notices = append(slices.Clone(rest), s.notices...)
}

// lossOf says whether the hold of h is over before its client has heard of it.
func lossOf(h *sessionHold, notices []notice) *transport.Fault {
	for _, n := range notices {
		if n.hold != h {
			continue
		}
		switch n.event.Kind {
		case fsm.EventReleased:
			return faultf(transport.WordLost, "granted, and lost at once: %s", causeWord(n.event.Cause))
		case fsm.EventSuspended:
			return faultf(transport.WordLost, "%sgranted, and suspended at once", transport.SuspendedText)
		case fsm.EventSuperseded:
			return errSuperseded
		}
	}
	return nil
}

// decided answers a LOCK whose wait has ended; later is the news after that.
func (s *session) decided(n notice, later []notice) bool {
	h := n.hold
	if n.event.Kind == fsm.EventGranted {
		if lost := lossOf(h, later); lost != nil {
			h.claim.Forget()
			return s.refuse(lost)
		}
		if hungUp(s.conn) {
			h.claim.Cancel()
			return false
		}
		return s.granted(h, n.event.Fence, n.event.Locks, true)
	}
	h.claim.Forget()
	if n.event.Kind == fsm.EventSuperseded {
		var f *transport.Fault
		if s.proto >= 2 {
			f = errSuperseded
		}
		return s.answer(transport.Status{Owner: s.holder(h.request), Fault: f})
	}
	if n.event.Cause == fsm.CauseNone {
		return s.refuse(faultf(transport.WordRefused, "%s", n.event.By))
	}
	return s.refuse(faultf(transport.WordLost, "the request was withdrawn: %s", causeWord(n.event.Cause)))
}

// holder is who has the first busy lock of a request, as far as the node can say.
func (s *session) holder(q transport.Request) string {
	ctx, cancel := context.WithTimeout(s.ctx, slowLock)
	defer cancel()
	res, err := s.node.Status(ctx, q.User, q.Locks)
	switch {
	case err != nil:
		return ""
	case res.Code == fsm.Granted:
		return q.User // by the other connection
	}
	return res.Owner
}

// granted tells the client what it holds. If that cannot be written, the grant is
// undone.
func (s *session) granted(h *sessionHold, fence fsm.Fence, locks []string, waited bool) bool {
	q := h.request
	h.fence, h.locks = fence, locks
	if q.Choice == transport.ChoiceAny {
		s.in.Narrow(q.LocksGen, locks)
	}
	ok := s.answer(transport.Status{Obtained: waited, Owner: q.User, Locked: true, Locks: locks, Fence: uint64(fence)})
	switch {
	case !ok:
		h.claim.Cancel()
	case s.proto < 2:
		h.claim.Forget()
	default:
		s.hold(h)
		s.last = h
	}
	return ok
}

// hungUp reports whether the other end has closed, or ended its side. Writing to
// a connection whose other end has closed succeeds once, so a grant would be lost.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} // poll(2)
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0
	})
	return gone
}

// hold notes that the client wants to know when h ends.
func (s *session) hold(h *sessionHold) {
	if s.held == nil {
		s.held = make(map[fsm.Fence]*sessionHold)
	}
	if old := s.held[h.fence]; old != nil && old != h {
		old.claim.Forget()
	}
	s.held[h.fence] = h
}

// acquire is the fsm's form of a LOCK.
func acquire(q transport.Request) fsm.Acquire {
	a := fsm.Acquire{
		Owner: q.User, ID: q.ID, Turn: q.Turn, Locks: q.Locks, Block: q.Block,
		Limit: millis(q.Timeout), Lease: millis(q.Lease), Slots: q.Slots,
		Process:    fsm.Process{Host: q.Host, PID: q.PID, Start: q.Start, Boot: q.Boot},
		Autounlock: q.Autounlock,
	}
	if q.Choice == transport.ChoiceAll {
		a.Choice = fsm.All
	}
	switch q.Mode {
	case transport.ModeShared:
		a.Mode = fsm.Shared
	case transport.ModeSlots:
		a.Mode = fsm.Slots
	}
	return a
}

// millis rounds up: what is above zero never becomes "no limit".
func millis(d time.Duration) fsm.Millis {
	m := fsm.Millis(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		m++
	}
	return m
}

func refusal(res fsm.Result) *transport.Fault {
	return faultf(transport.WordRefused, "%s", res.Reason)
}
