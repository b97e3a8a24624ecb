package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

// sessionNode is what a session needs of its node; the methods of Node have the
// meaning given there. Every session calls it from a goroutine of its own. It
// calls notify from any goroutine, one call at a time for one claim.
type sessionNode interface {
	Acquire(ctx context.Context, a fsm.Acquire, notify func(fsm.Event)) (sessionClaim, fsm.Result, error)
	Attach(ctx context.Context, owner string, fence fsm.Fence, notify func(fsm.Event)) (sessionClaim, fsm.Result, error)
	Submit(ctx context.Context, c fsm.Command) (fsm.Result, error)
	Status(ctx context.Context, owner string, locks []string) (fsm.Result, error)
	Ended(ctx context.Context, fence fsm.Fence) (fsm.Cause, error)
	Table(ctx context.Context, stale bool) (Table, error)
	Dead(ctx context.Context, p fsm.Process) error
	Anchor(p fsm.Process, fence fsm.Fence, over func()) (lift func(), err error)
	Name() string
	Version() string
	Started() time.Time
}

// sessionClaim is the part of Claim that a session needs. Cancel may be called
// from notify.
type sessionClaim interface {
	Cancel()
	Withdraw(ctx context.Context)
	Forget()
}

// session serves one client connection, on one goroutine.
//
// The goroutine is always in one of two places: in a call of the node, or in a
// read of the connection. It reads while a LOCK waits as well, to see a hang-up;
// what arrives then is kept and not executed. News from the node (a grant, the
// loss of a hold) is put into notices by whatever goroutine brings it, which then
// ends the read by moving its deadline into the past.
//
// Invariant: a request is executed only when the one before it has been answered.
type session struct {
	conn      net.Conn
	node      sessionNode
	cfg       *serverConfig
	log       hclog.Logger
	ctx       context.Context // ends when the server gives up waiting for its sessions
	in        *transport.Reader
	out       []byte // replies not yet written
	proto     int
	since     time.Time                  // the last request's end, or the connection's begin
	held      map[fsm.Fence]*sessionHold // proto 2: the holds whose end the client wants to know
	last      *sessionHold               // proto 2: what the last LOCK was granted; nil if not
	restarted bool                       // RESTART was sent, and is in the log
	anchored  bool                       // ANCHOR was answered
	waiting   bool                       // a LOCK waits: waitEnd is the deadline of reads
	waitEnd   time.Time                  // zero = none

	mu        sync.Mutex
	notices   []notice
	stopping  bool     // the server stops, and the client has yet to be told
	elsewhere []string // where it is to go then
	watching  bool     // a LOCK is on its way to the leader, and the watch goroutine reads
	watched   bool     // the watch is over
	over      bool     // nobody reads notices any more
	cut       bool     // the hold that is anchored here is over
}

// sessionHold is one LOCK or RENEW of a session, from the request on.
type sessionHold struct {
	request transport.Request
	claim   sessionClaim
	fence   fsm.Fence
	locks   []string
}

type notice struct {
	hold  *sessionHold
	event fsm.Event
}

// errWoken ends a read because there is something else to do.
var errWoken = errors.New("woken")

// errStopping ends the requests that a stopping server does not answer any more.
var errStopping = faultf(transport.WordStopping, "the server is stopping")

// past is a deadline that has been missed.
var past = time.Unix(1, 0)

func newSession(ctx context.Context, conn net.Conn, node sessionNode, cfg *serverConfig) *session {
	s := &session{conn: conn, node: node, cfg: cfg, log: cfg.Logger, ctx: ctx, proto: 1, since: time.Now()}
	s.in = transport.NewReader(sessionInput{s})
	return s
}

// serve runs the session to its end, and closes the connection.
func (s *session) serve() {
	defer s.conn.Close()
	defer s.end()
	for {
		q, err := s.in.Next()
		switch {
		case err == nil:
			if !s.execute(q) {
				return
			}
			s.since = time.Now()
		case errors.Is(err, errWoken):
			if !s.wake() {
				return
			}
		default:
			if f := (*transport.Fault)(nil); errors.As(err, &f) {
				s.lastWords(f)
			}
			return
		}
	}
}

// end stops the news. Holds that the client has been given stay.
func (s *session) end() {
	for _, h := range s.held {
		h.claim.Forget()
	}
	s.mu.Lock()
	s.over = true
	left := s.notices
	s.notices = nil
	s.mu.Unlock()
	for _, n := range left {
		if n.event.Kind == fsm.EventGranted && n.hold.claim != nil {
			n.hold.claim.Cancel()
		}
	}
}

// wake deals with what has ended a read while no LOCK waits, and reports whether
// the session goes on.
func (s *session) wake() bool {
	for _, n := range s.news() {
		s.heldNews(n)
	}
	if s.mustStop() {
		s.moved()
		s.partWith()
		return false
	}
	if end := s.readEnd(); !end.IsZero() && !time.Now().Before(end) {
		s.lastWords(faultf(transport.WordTimeout, "no request for %v, and nothing held here", s.cfg.Idle))
		return false
	}
	return true
}

// heldNews tells the client that a hold of its has ended.
func (s *session) heldNews(n notice) {
	h := n.hold
	if s.held[h.fence] != h {
		return
	}
	switch n.event.Kind {
	case fsm.EventReleased:
		s.out = transport.AppendLost(s.out, uint64(h.fence), causeWord(n.event.Cause), n.event.By)
	case fsm.EventSuspended:
		s.out = transport.AppendLost(s.out, uint64(h.fence), wordSuspended, n.event.By)
	case fsm.EventSuperseded:
		// Another connection of the owner's has the hold now, and hears of it.
	default:
		return
	}
	s.drop(h)
}

// drop lets go of a hold that is over or belongs to another connection.
func (s *session) drop(h *sessionHold) {
	h.claim.Forget()
	if s.held[h.fence] == h {
		delete(s.held, h.fence)
	}
	if s.last == h {
		s.last = nil
	}
	s.since = time.Now()
}

// notify brings news of h; it is what the node calls. A wait that was left for
// its client to find elsewhere may be granted after the session's end: that
// reaches nobody.
func (s *session) notify(h *sessionHold, e fsm.Event) {
	s.mu.Lock()
	over := s.over
	if !over {
		s.notices = append(s.notices, notice{h, e})
		s.conn.SetReadDeadline(past)
	}
	s.mu.Unlock()
	if over && e.Kind == fsm.EventGranted && h.claim != nil {
		h.claim.Cancel()
	}
}

// stop asks the session to end. A request on its way to the leader is answered
// first, and the client of a waiting LOCK is given the time to go elsewhere.
func (s *session) stop(elsewhere []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping, s.elsewhere = true, elsewhere
	s.conn.SetReadDeadline(past)
}

func (s *session) news() []notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	notices := s.notices
	s.notices = nil
	return notices
}

// mustStop reports, once, that the server stops.
func (s *session) mustStop() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	stopping := s.stopping
	s.stopping = false
	return stopping
}

// readEnd is when to stop reading; zero = never. A client that waits, holds
// something or has an anchor here may be silent.
func (s *session) readEnd() time.Time {
	if s.waiting {
		return s.waitEnd
	}
	if len(s.held) > 0 || s.anchored {
		return time.Time{}
	}
	return s.since.Add(s.cfg.Idle)
}

// arm sets the deadline of a read, unless there is something else to do.
func (s *session) arm() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching {
		if s.watched {
			return false
		}
		s.conn.SetReadDeadline(time.Time{})
		return true
	}
	if len(s.notices) > 0 || s.stopping || s.cut {
		return false
	}
	s.conn.SetReadDeadline(s.readEnd())
	return true
}

// sessionInput is what the session's requests are read from. Replies are written
// when there is nothing more to execute.
type sessionInput struct{ s *session }

func (i sessionInput) Read(p []byte) (int, error) {
	if err := i.s.flush(); err != nil {
		return 0, err
	}
	if !i.s.arm() {
		return 0, errWoken
	}
	n, err := i.s.conn.Read(p)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, errWoken
	}
	return n, err
}

// Reply buffers: what is written at one go at most, and what a silent connection
// keeps at most, in bytes.
const (
	maxReply  = 64 << 10
	keepReply = 1 << 10
)

// flush writes the replies. It takes as long as the client does to read them, up
// to the write time-out for each maxReply bytes or so.
func (s *session) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	s.conn.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	if cap(s.out) > keepReply {
		s.out = nil
	}
	return err
}

// lastWords tells the client why the connection ends.
func (s *session) lastWords(f *transport.Fault) {
	s.out = transport.Status{Fault: f}.Append(s.out, s.proto)
	s.partWith()
}

// moved tells the client that this node stops. An IPC::Locker client would take
// a silent end for "not locked", and old lockersh runs its command all the same;
// an error makes both give up.
func (s *session) moved() {
	if s.proto >= 2 {
		s.out = transport.AppendMoved(s.out, s.elsewhere)
		return
	}
	s.out = transport.Status{Fault: errStopping}.Append(s.out, s.proto)
}

// Limits of partWith: what the client may still send before it reads.
const (
	partingTime  = time.Second
	partingBytes = 1 << 20
)

// partWith writes what there is to write, and gives the client the time to read
// it: closing while input is unread would reset the connection, and with it what
// the client has not read yet.
func (s *session) partWith() {
	if s.flush() != nil {
		return
	}
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	s.conn.SetReadDeadline(time.Now().Add(partingTime))
	io.CopyN(io.Discard, struct{ io.Reader }{s.conn}, partingBytes)
}

func faultf(word, format string, args ...any) *transport.Fault {
	return &transport.Fault{Word: word, Text: fmt.Sprintf(format, args...)}
}

// fault says in the protocol's words why the node could not answer.
func fault(err error) *transport.Fault {
	var f *transport.Fault
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, ErrClosed), errors.Is(err, context.Canceled):
		return errStopping
	}
	return faultf(transport.WordNoLeader, "%v", err)
}

// wordSuspended is the cause of the loss of a hold whose job has been put on disk.
const wordSuspended = "suspended"

func causeWord(c fsm.Cause) string {
	switch c {
	case fsm.CauseOwner:
		return "owner"
	case fsm.CauseLimit:
		return "limit"
	case fsm.CauseLease:
		return "lease"
	case fsm.CauseBroken:
		return "broken"
	case fsm.CauseProcessGone:
		return "process"
	case fsm.CauseUndelivered:
		return "undelivered"
	case fsm.CauseResumed:
		return wordSuspended // that is how its owner has lost it
	}
	return "unknown"
}
