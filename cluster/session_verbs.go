package cluster

import (
	"errors"
	"slices"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

// execute answers a request, and reports whether the session goes on.
func (s *session) execute(q transport.Request) bool {
	switch q.Verb {
	case transport.VerbEOF:
		s.flush()
		return false
	case transport.VerbProto:
		s.proto = q.Proto
		s.out = transport.AppendProto(s.out, s.node.Name())
		return s.relieve()
	case transport.VerbPing:
		s.out = transport.AppendPong(s.out)
		return s.relieve()
	case transport.VerbVersion:
		s.out = transport.AppendVersion(s.out, s.node.Version(), s.node.Started())
		return s.relieve()
	case transport.VerbRestart:
		if !s.restarted {
			s.log.Warn("RESTART ignored", "client", s.conn.RemoteAddr(), "user", q.User)
		}
		s.restarted = true
		return true
	case transport.VerbDeadPID:
		s.dead(q)
		return true
	}
	if q.Fault != nil {
		if q.Verb == transport.VerbLock {
			s.last = nil
		}
		return s.refuse(q.Fault)
	}
	switch q.Verb {
	case transport.VerbLock:
		return s.lock(q)
	case transport.VerbUnlock:
		return s.unlock(q)
	case transport.VerbBreak:
		return s.breakLock(q)
	case transport.VerbStatus:
		return s.status(q)
	case transport.VerbList:
		return s.list()
	case transport.VerbRenew:
		return s.renew(q)
	case transport.VerbCancel:
		return s.cancelLast()
	case transport.VerbHolds:
		return s.holds()
	case transport.VerbAnchor:
		return s.anchor(q)
	}
	return true
}

// relieve writes replies that have piled up while there was more to execute.
func (s *session) relieve() bool {
	return len(s.out) < maxReply || s.flush() == nil
}

// answer writes a status block.
func (s *session) answer(b transport.Status) bool {
	s.out = b.Append(s.out, s.proto)
	return s.flush() == nil
}

func (s *session) refuse(f *transport.Fault) bool {
	return s.answer(transport.Status{Fault: f})
}

// unlock releases what the user holds or waits for, on whatever connection.
func (s *session) unlock(q transport.Request) bool {
	if len(q.Locks) == 0 && q.Fence == 0 {
		return s.answer(transport.Status{})
	}
	if s.flush() != nil {
		return false
	}
	res, err := s.node.Submit(s.ctx, fsm.Release{Owner: q.User, ID: q.ID, Locks: q.Locks, Fence: fsm.Fence(q.Fence)})
	switch {
	case err != nil:
		return s.refuse(fault(err))
	case res.Code == fsm.Refused:
		return s.refuse(refusal(res))
	}
	s.dropReleased(q)
	if res.Code == fsm.NotHeld {
		s.tellEnd(q)
		return s.answer(transport.Status{Owner: res.Owner, Fault: lostBefore(q, res)})
	}
	return s.answerAfter(q, res)
}

// tellEnd says what has ended a hold, if that is known: who asks for a release again, since
// the answer was lost, learns so that it was this release.
func (s *session) tellEnd(q transport.Request) {
	if s.proto != 2 || q.Fence == 0 {
		return
	}
	cause, err := s.node.Ended(s.ctx, fsm.Fence(q.Fence))
	if err != nil {
		s.log.Debug("how a hold has ended is not known", "fence", q.Fence, "error", err)
		return
	}
	if cause != fsm.CauseNone {
		s.out = transport.AppendLost(s.out, q.Fence, causeWord(cause), "")
	}
}

// dropReleased drops the holds that a Release has ended.
func (s *session) dropReleased(q transport.Request) {
	for fence, h := range s.held {
		if fence == fsm.Fence(q.Fence) {
			s.drop(h)
			continue
		}
		sameClaim := h.request.User == q.User && (q.ID == [16]byte{} || q.ID == h.request.ID)
		named := func(lock string) bool { return slices.Contains(q.Locks, lock) }
		if q.Fence == 0 && sameClaim && slices.ContainsFunc(h.locks, named) {
			s.drop(h)
		}
	}
}

func lostBefore(q transport.Request, res fsm.Result) *transport.Fault {
	if res.Reason != "" {
		return faultf(transport.WordLost, "%s%s", transport.SuspendedText, res.Reason)
	}
	return faultf(transport.WordLost, "no hold has the fence %d any more", q.Fence)
}

func (s *session) breakLock(q transport.Request) bool {
	if len(q.Locks) == 0 {
		return s.answer(transport.Status{})
	}
	if s.flush() != nil {
		return false
	}
	res, err := s.node.Submit(s.ctx, fsm.Break{Locks: q.Locks, By: q.User, Fence: fsm.Fence(q.Fence)})
	switch {
	case err != nil:
		return s.refuse(fault(err))
	case res.Code == fsm.Refused:
		return s.refuse(refusal(res))
	}
	if len(res.Broken) > 0 {
		s.log.Info("locks broken", "locks", q.Locks, "owners", res.Broken, "by", q.User, "client", s.conn.RemoteAddr())
	}
	for _, owner := range res.Broken {
		s.out = transport.AppendBroke(s.out, owner)
	}
	if res.Code == fsm.NotHeld {
		return s.answer(transport.Status{Owner: res.Owner, Fault: lostBefore(q, res)})
	}
	return s.answerAfter(q, res)
}

// answerAfter answers a command that has ended holds. Its result names the owner
// of the first lock that is busy now; if that is the user itself, granted
// elsewhere by this very command, the block has to say so.
func (s *session) answerAfter(q transport.Request, res fsm.Result) bool {
	if res.Owner == q.User && len(q.Locks) > 0 {
		return s.status(q)
	}
	return s.answer(transport.Status{Owner: res.Owner})
}

// status says whether the user holds one of the locks, and else who does.
func (s *session) status(q transport.Request) bool {
	if len(q.Locks) == 0 {
		return s.answer(transport.Status{})
	}
	if s.flush() != nil {
		return false
	}
	res, err := s.node.Status(s.ctx, q.User, q.Locks)
	switch {
	case err != nil:
		return s.refuse(fault(err))
	case res.Code == fsm.Granted:
		s.in.Narrow(q.LocksGen, res.Locks)
		return s.answer(transport.Status{Owner: q.User, Locked: true, Locks: res.Locks, Fence: uint64(res.Fence)})
	}
	return s.answer(transport.Status{Owner: res.Owner})
}

// dead passes on a client's word that a process has ended. There is no reply.
func (s *session) dead(q transport.Request) {
	err := error(nil)
	if q.Fault != nil {
		err = q.Fault
	} else {
		err = s.node.Dead(s.ctx, fsm.Process{Host: q.DeadHost, PID: q.DeadPID})
	}
	if err != nil {
		s.log.Debug("DEAD_PID ignored", "client", s.conn.RemoteAddr(), "host", q.DeadHost, "pid", q.DeadPID, "error", err)
	}
}

// renew proves that the owner of a hold lives, and has this connection hear of
// the hold's end.
func (s *session) renew(q transport.Request) bool {
	if q.Fence == 0 {
		return s.refuse(faultf(transport.WordBadRequest, "RENEW needs the fence of a hold"))
	}
	if s.flush() != nil {
		return false
	}
	h := s.held[fsm.Fence(q.Fence)]
	var res fsm.Result
	var err error
	if h != nil && h.request.User == q.User {
		res, err = s.node.Submit(s.ctx, fsm.Renew{Owner: q.User, Fence: h.fence})
	} else {
		h = &sessionHold{request: q, fence: fsm.Fence(q.Fence)}
		h.claim, res, err = s.node.Attach(s.ctx, q.User, h.fence, func(e fsm.Event) { s.notify(h, e) })
	}
	switch {
	case err != nil:
		return s.refuse(fault(err))
	case res.Code == fsm.NotHeld:
		s.drop(h)
		return s.answer(transport.Status{Owner: res.Owner, Fault: lostBefore(q, res)})
	case res.Code == fsm.Refused:
		s.drop(h)
		return s.refuse(refusal(res))
	}
	if len(res.Locks) > 0 {
		h.locks = res.Locks
	}
	s.hold(h)
	return s.answer(transport.Status{Owner: q.User, Locked: true, Locks: h.locks, Fence: q.Fence})
}

// cancelLast undoes the last LOCK: its grant and the client's CANCEL have crossed.
func (s *session) cancelLast() bool {
	h := s.last
	if h == nil {
		return s.refuse(errCancelled)
	}
	if s.flush() != nil {
		return false
	}
	_, err := s.node.Submit(s.ctx, fsm.Release{Owner: h.request.User, Fence: h.fence})
	if err != nil && !errors.Is(err, errUnsure) {
		return s.refuse(fault(err))
	}
	s.drop(h)
	return s.refuse(errCancelled)
}
