package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Suspension is what a hold has instead of a holder: its job is on disk. It is never
// changed once it is in the table.
type Suspension struct {
	By      string // who asked for it
	At      Millis
	Context string // where the job is; for people
	// ContextID is that of the file there. A job may have been put into several under one
	// fence, and started from an older one it would do again what it has done.
	ContextID string
	Job       Fence // under which the job was put there, and by which it finds its lock
	Ended     bool  // none of the job runs any more, so it may be started elsewhere
}

// Suspend has a hold go on without its holder: no process, no lease and no connection
// ends it. Its owner has it no more, and can neither renew nor release it; a [Resume]
// gives it to another one. A limit counts on. The same again changes nothing, but for
// Ended, which stays once it was said.
//
// It takes two: whoever ends the job has to know that its lock is kept before he does
// it, and nobody is to get the lock before he has.
type Suspend struct {
	Fence     Fence
	By        string
	Context   string // see Suspension
	ContextID string
	Ended     bool
}

// Resume gives a suspended hold to a new holder, with a new fence: of those who mean the
// same suspension, one gets it. The locks, their mode and their slots stay what they were.
// Result is Granted, with the new fence. If the process of the new holder ends before a
// [Renew] has said that it runs, the hold is suspended again, under the new fence.
type Resume struct {
	Fence      Fence  // of the suspended hold
	ContextID  string // has to be that of the suspension
	By         string
	Owner      string
	ID         RequestID
	Limit      Millis // from now on; 0 = what is left of that of the suspended hold
	Lease      Millis
	Process    Process
	Autounlock bool
}

func (Suspend) isCommand() {}
func (Resume) isCommand()  {}

var errSuspendBy = errors.New("who suspends a hold has to be said")

func (c Suspend) validate() error {
	switch {
	case c.Fence == 0:
		return errFence
	case c.By == "":
		return errSuspendBy
	}
	return firstError(
		checkText("name of who suspends", c.By, MaxOwner), checkText("context", c.Context, MaxContext),
		checkText("context id", c.ContextID, MaxContextID))
}

func (c Resume) validate() error {
	if c.Fence == 0 {
		return errFence
	}
	return firstError(
		checkText("context id", c.ContextID, MaxContextID), checkText("name of who resumes", c.By, MaxOwner), checkText("owner", c.Owner, MaxOwner), checkProcess(c.Process))
}

func (m *Machine) suspend(c Suspend) Result {
	cl := m.holds.byKey[uint64(c.Fence)]
	if cl == nil {
		return Result{Code: NotHeld, Fence: c.Fence}
	}
	h := cl.hold
	if s := h.Suspended; s != nil {
		if s.By != c.By || s.Context != c.Context || s.ContextID != c.ContextID {
			return refused(h.suspended())
		}
		if c.Ended && !s.Ended {
			again, ended := *h, *s
			ended.Ended = true
			again.Suspended = &ended
			m.replaceHold(cl, &again)
		}
		return Result{Fence: h.Fence, Locks: h.Locks}
	}
	m.lay(cl, &Suspension{By: c.By, At: m.now, Context: c.Context, ContextID: c.ContextID, Job: c.Fence, Ended: c.Ended}, CauseNone)
	return Result{Fence: h.Fence, Locks: h.Locks}
}

// lay takes a hold from its holder, for a suspension.
func (m *Machine) lay(cl *claim, s *Suspension, cause Cause) {
	h := cl.hold
	e := m.holdEvent(EventSuspended, h)
	e.By, e.Context, e.Cause = s.By, s.Context, cause
	again := *h
	again.Ask, again.Attached = Ask{}, false
	again.Lease, again.Autounlock = 0, false
	again.Suspended, again.Resumed = s, nil
	m.replaceHold(cl, &again)
	m.events = append(m.events, e)
	m.follow(h.Ask, Result{Code: Done})
}

func (m *Machine) resume(ask Ask, c Resume) Result {
	cl := m.holds.byKey[uint64(c.Fence)]
	if cl == nil {
		return Result{Code: NotHeld, Fence: c.Fence}
	}
	h := cl.hold
	if h.Suspended == nil {
		return refused(fmt.Sprintf("%s is not suspended; it is held by %s", brief(h.Locks[0]), brief(h.Owner)))
	}
	if h.Suspended.ContextID != c.ContextID {
		return refused(h.suspended() + ", and what is to be started is of another file")
	}
	if !h.Suspended.Ended {
		return refused(h.suspended() + ", and it is not known to have ended on " + brief(h.Process.Host))
	}
	me := claimant{c.Owner, c.ID}
	for i := range cl.seats {
		if s := cl.seats[i].lock.find(me); s != nil && s.claim != cl {
			return refused(fmt.Sprintf("%s holds %s or waits for it already", brief(c.Owner), brief(h.Locks[i])))
		}
	}
	m.remove(cl)
	e := m.holdEvent(EventReleased, h)
	e.Cause, e.By = CauseResumed, c.By
	m.events = append(m.events, e)
	limit := c.Limit
	if limit == 0 && h.Limit != 0 {
		limit = max(1, h.Limit-(m.now-h.Granted)) // in its last millisecond there is nothing left
	}
	// Nothing is granted in between: the lock passes from one to the other.
	again := m.grant(ask, Acquire{
		Owner: c.Owner, ID: c.ID, Mode: h.Mode, Slots: h.Slots, Limit: limit, Lease: c.Lease,
		Process: m.intern(c.Process), Autounlock: c.Autounlock,
	}, h.Locks, nil, h.Suspended)
	m.lockEnded(h.Fence)
	m.settle()
	return Result{Code: Granted, Fence: again.Fence, Locks: again.Locks, Owner: again.Owner}
}

// suspended says why the owner of a hold cannot have it any more.
func (h *Hold) suspended() string {
	s := h.Suspended
	text := fmt.Sprintf("%s is suspended by %s", brief(h.Locks[0]), brief(s.By))
	if s.Context != "" {
		text += ": its job is in " + brief(s.Context)
	}
	return text
}

func (m *Machine) checkSuspended(h *Hold) error {
	s := h.Suspended
	switch {
	case s == nil && h.Resumed == nil:
		return nil
	case s != nil && h.Resumed != nil:
		return fmt.Errorf("I18: fence %d is suspended and resumed", h.Fence)
	case s != nil && (h.Autounlock || h.Lease != 0 || h.Attached || h.Ask != (Ask{})):
		return fmt.Errorf("I18: fence %d is suspended, and bound to a holder", h.Fence)
	case s == nil && !h.Resumed.Ended:
		return fmt.Errorf("I18: fence %d was resumed before its job had ended", h.Fence)
	case s == nil:
		s = h.Resumed
	}
	switch {
	case s.At > m.now:
		return fmt.Errorf("I18: fence %d is suspended in the future", h.Fence)
	case s.Job == 0 || s.Job > h.Fence:
		return fmt.Errorf("I18: fence %d is for a job of fence %d", h.Fence, s.Job)
	}
	if err := (Suspend{Fence: h.Fence, By: s.By, Context: s.Context, ContextID: s.ContextID}).validate(); err != nil {
		return fmt.Errorf("I18: fence %d: %w", h.Fence, err)
	}
	return nil
}

func appendSuspend(b []byte, c Suspend) []byte {
	b = binary.AppendUvarint(b, uint64(c.Fence))
	b = appendString(b, c.By)
	b = appendString(b, c.Context)
	b = appendString(b, c.ContextID)
	return appendBool(b, c.Ended)
}

func (r *reader) suspend() Suspend {
	return Suspend{
		Fence: Fence(r.uvarint()), By: r.text(MaxOwner, "name of who suspends"), Context: r.text(MaxContext, "context"),
		ContextID: r.text(MaxContextID, "context id"), Ended: r.bool(),
	}
}

func appendResume(b []byte, c Resume) []byte {
	b = binary.AppendUvarint(b, uint64(c.Fence))
	b = appendString(b, c.ContextID)
	b = appendString(b, c.By)
	b = appendString(b, c.Owner)
	b = appendID(b, c.ID)
	b = binary.AppendUvarint(b, uint64(c.Limit))
	b = binary.AppendUvarint(b, uint64(c.Lease))
	b = appendProcess(b, c.Process)
	return appendBool(b, c.Autounlock)
}

func (r *reader) resume() Resume {
	return Resume{
		Fence: Fence(r.uvarint()), ContextID: r.text(MaxContextID, "context id"), By: r.text(MaxOwner, "name of who resumes"), Owner: r.text(MaxOwner, "owner"), ID: r.id(),
		Limit: r.millis(), Lease: r.millis(), Process: r.process(), Autounlock: r.bool(),
	}
}

func appendSuspension(b []byte, s *Suspension) []byte {
	b = appendString(b, s.By)
	b = binary.AppendUvarint(b, uint64(s.At))
	b = appendString(b, s.Context)
	b = appendString(b, s.ContextID)
	b = binary.AppendUvarint(b, uint64(s.Job))
	return appendBool(b, s.Ended)
}

func (r *reader) suspension() *Suspension {
	return &Suspension{
		By: r.text(MaxOwner, "name of who suspends"), At: r.millis(), Context: r.text(MaxContext, "context"),
		ContextID: r.text(MaxContextID, "context id"), Job: Fence(r.uvarint()), Ended: r.bool(),
	}
}
