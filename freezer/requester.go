package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Guard is a guard process, seen from outside: from the requester that has started it
// with [Start], or from somebody who has found it with [Adopt]. Its methods may be
// called from any goroutine.
type Guard struct {
	dir     string
	sock    *packets
	pidfd   int         // -1 for one that cannot be seen from our pid namespace
	waking  sync.Mutex  // of pidfd, until it is closed and -1
	id      string      // of the freeze, known once it is prepared
	stays   atomic.Bool // the freeze does, when this end is closed
	closed  atomic.Bool
	asking  sync.Mutex // one question at a time
	answers chan message
	done    chan struct{}
	err     error // set before done is closed
}

func newGuard(dir string, sock *packets, pidfd int) *Guard {
	// Of answers that nobody waits for any more, a few may lie about.
	g := &Guard{dir: dir, sock: sock, pidfd: pidfd, answers: make(chan message, 4), done: make(chan struct{})}
	go g.listen()
	return g
}

const (
	// guardPatience bounds the wait for an answer of a guard that is not freezing.
	guardPatience = 10 * time.Second
	// thawPatience bounds the wait for a thaw, which may take as long as a disk.
	thawPatience = 2 * time.Minute
	// wakePause is the time between two tries to wake a guard that somebody has stopped.
	wakePause = time.Second
)

// wake continues a guard that somebody has stopped. It is nobody's child, so no parent
// sees that.
func (g *Guard) wake() {
	g.waking.Lock()
	defer g.waking.Unlock()
	if g.pidfd >= 0 {
		_ = unix.PidfdSendSignal(g.pidfd, unix.SIGCONT, nil, 0)
	}
}

// awaitEnd waits for the guard's end, and keeps it awake.
func (g *Guard) awaitEnd(patience time.Duration) error {
	g.wake()
	tick := time.NewTicker(wakePause)
	defer tick.Stop()
	late := time.After(patience)
	for {
		select {
		case <-g.done:
			return nil
		case <-tick.C:
			g.wake()
		case <-late:
			return fmt.Errorf("%w yet: its guard has not said so for %v", ErrNotThawed, patience)
		}
	}
}

// Start starts a guard, which keeps its journal in a directory in memory: "" is [Dir].
// Nothing is frozen yet. What earlier guards have left there that were killed is
// thawed first; see [Recover]. The guard ends with the first freeze, or when the
// requester ends or closes it.
func Start(ctx context.Context, dir string) (*Guard, error) {
	if os.Geteuid() != 0 {
		return nil, ErrPermission
	}
	if dir == "" {
		dir = Dir()
	}
	dir, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	if _, err := Recover(dir); err != nil {
		return nil, fmt.Errorf("thaw what an earlier guard has left: %w", err)
	}
	sock, err := startGuard(dir)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.file.SetReadDeadline(time.Now()) })
	m, fd, err := sock.receive()
	if !stop() {
		err = context.Cause(ctx)
	}
	_ = sock.file.SetReadDeadline(time.Time{})
	if err == nil {
		err = m.failure()
	}
	if err == nil && (m.Op != opHello || fd < 0) {
		err = fmt.Errorf("%w: %.20q instead of a pidfd", errMessage, m.Op)
	}
	if err != nil {
		sock.close()
		return nil, fmt.Errorf("start a guard: %w", err)
	}
	return newGuard(dir, sock, fd), nil
}

// Adopt connects to the guard of a freeze that somebody else has asked for: see
// [List]. Whoever adopts it may look at it, extend it and end it. That the one who
// has adopted it ends makes no difference to it.
func Adopt(dir, id string) (*Guard, error) {
	if dir == "" {
		dir = Dir()
	}
	found, err := records(dir)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if found[i].ID != id {
			continue
		}
		fds := unpinned
		if !found[i].unseen {
			proc, err := openProc()
			if err != nil {
				return nil, err
			}
			defer proc.close()
			var s stat
			if fds, s, err = proc.pin(found[i].Guard.pid); err != nil || s.start != found[i].Guard.start {
				fds.close()
				break
			}
			_ = unix.Close(fds.stat)
		}
		sock, err := connect(filepath.Join(dir, id+socketEnd))
		if err != nil {
			if fds.pidfd >= 0 {
				_ = unix.Close(fds.pidfd)
			}
			return nil, err
		}
		g := newGuard(dir, sock, fds.pidfd)
		g.id = id
		g.stays.Store(true)
		return g, nil
	}
	return nil, fmt.Errorf("%w: no guard holds %s", ErrThawed, id)
}

func connect(path string) (*packets, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to the guard at %s: %w", path, err)
	}
	return newPackets(fd)
}

// List says what the living guards hold whose journals are in a directory; "" is
// [Dir]. Of the processes that were told to stop, Report.Processes counts those that stand
// still now, and Report.Running the others: those that did not stop in a partial freeze, or
// that somebody has let go on.
func List(dir string) ([]State, error) {
	if dir == "" {
		dir = Dir()
	}
	found, err := records(dir)
	if err != nil {
		return nil, err
	}
	states := []State{}
	for i := range found {
		if !found[i].Since.IsZero() { // else it is prepared, and holds nothing
			s := found[i].state()
			if s.Report.Processes > 0 {
				if err := found[i].count(&s.Report); err != nil {
					return nil, err
				}
			}
			states = append(states, s)
		}
	}
	return states, nil
}

// count counts the processes of a journal by what they do now. The journal says only
// which ones were told to stop.
func (r *record) count(report *Report) error {
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.close()
	w := walk{scope: &scope{proc: proc}}
	report.Processes = 0
	for _, e := range r.entries {
		if e.kind != entryPID {
			continue
		}
		st, err := proc.stat(e.pid)
		if err != nil || st.start != e.start || st.ended() {
			continue
		}
		if still, state := w.stopped(&st); still || state != 'R' && inFrozenCgroup(proc, e.pid) {
			report.Processes++
		} else {
			report.Running++
		}
	}
	return nil
}

// overdueAfter is how long after its deadline a guard may be at the thaw.
const overdueAfter = time.Second

func (r *record) state() State {
	s := State{
		ID: r.ID, Guard: int(r.Guard.pid), Requester: int(r.Requester.pid),
		Targets: r.Targets, Since: r.Since, Left: -1, Lease: r.Lease,
	}
	if r.Until > 0 {
		s.Left = max(r.Until-boottime(), 0)
		if late := boottime() - r.Until; late > overdueAfter {
			s.Overdue = late
		}
	}
	proc, err := openProc()
	s.Detached = r.Detach // more cannot be known of other pid namespaces
	if err == nil && !r.foreign() {
		st, err := proc.stat(r.Requester.pid)
		s.Detached = err != nil || st.ended() || st.start != r.Requester.start
	}
	if err == nil {
		proc.close()
	}
	for _, e := range r.entries {
		switch e.kind {
		case entryPID:
			s.Report.Processes++
		case entryCgroup:
			s.Report.Cgroups = append(s.Report.Cgroups, e.path)
		case entryFS:
			s.Report.FileSystems = append(s.Report.FileSystems, e.path)
		}
	}
	return s
}

// listen hears the guard to its end.
func (g *Guard) listen() {
	defer close(g.done)
	defer func() {
		g.waking.Lock()
		defer g.waking.Unlock()
		if g.pidfd >= 0 {
			_ = unix.Close(g.pidfd)
		}
		g.pidfd = -1
	}()
	var refusal error
	for {
		m, fd, err := g.sock.receive()
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		switch {
		case errors.Is(err, errMessage):
			continue
		case err != nil && g.closed.Load() && g.stays.Load():
			g.err = fmt.Errorf("%w, or not: it was left to itself", ErrThawed)
			return
		case err != nil:
			g.err = g.bury(refusal)
			return
		case m.Op == opThawed:
			g.err = m.failure()
			return
		case m.Op == opFailed:
			refusal = m.failure()
		}
		select {
		case g.answers <- m:
		default:
		}
	}
}

// bury does the work of a guard that has ended without having done it. refusal is
// what it has said last, if it had an end to announce.
func (g *Guard) bury(refusal error) error {
	if g.pidfd < 0 {
		return g.buryUnseen()
	}
	polls := []unix.PollFd{{Fd: int32(g.pidfd), Events: unix.POLLIN}}
	for until := time.Now().Add(guardPatience); ; {
		n, err := unix.Poll(polls, int(guardPatience/time.Millisecond))
		if n > 0 {
			break
		}
		if err != unix.EINTR || time.Now().After(until) {
			return fmt.Errorf("%w, or hangs: it has closed its socket, and still exists", ErrGuardLost)
		}
	}
	_, err := Recover(g.dir)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrGuardLost, err)
	case refusal != nil:
		return refusal
	}
	return ErrGuardLost
}

// buryUnseen is bury for a guard whose end shows in its journal alone.
func (g *Guard) buryUnseen() error {
	for until := time.Now().Add(guardPatience); ; time.Sleep(lockPause) {
		_, err := Recover(g.dir)
		if _, gone := os.Stat(filepath.Join(g.dir, g.id+journalEnd)); errors.Is(gone, os.ErrNotExist) {
			return ErrGuardLost
		}
		if time.Now().After(until) {
			return errors.Join(fmt.Errorf("%w, or hangs: it has closed its socket, and its journal is there", ErrGuardLost), err)
		}
	}
}

// ask sends a message and waits for the answer.
func (g *Guard) ask(ctx context.Context, m message) (message, error) {
	g.asking.Lock()
	defer g.asking.Unlock()
	for len(g.answers) > 0 {
		<-g.answers
	}
	if err := g.sock.send(m, -1); err != nil {
		select {
		case <-g.done:
			return message{}, g.Err()
		case <-time.After(time.Second):
			return message{}, fmt.Errorf("tell the guard: %w", err)
		}
	}
	select {
	case answer := <-g.answers:
		return answer, answer.failure()
	case <-g.done:
		return message{}, g.Err()
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
}

// Prepare lets the guard refuse an order if it can be known before that it cannot be
// carried out, and get hold of all that it is for, so that a Freeze of the same order
// is quick. Nothing is frozen by it. It may be called again; after an error the guard
// has ended. The errors are those of Freeze.
func (g *Guard) Prepare(ctx context.Context, o Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	m, err := g.ask(ctx, message{Op: opPrepare, Order: &o})
	switch {
	case err == nil && (m.Op != opPrepared || m.State == nil):
		err = fmt.Errorf("%w: %.20q instead of prepared", errMessage, m.Op)
	case err == nil:
		g.id = m.State.ID
	}
	if err != nil {
		g.Close() // it may be at it still, for as long as a disk takes
	}
	return err
}

// Freeze freezes, all or nothing unless the order allows a part. After an error
// nothing is frozen, unless it is [ErrNotThawed], and the Report may say what stood in the way; it is
// [ErrOrder], [ErrNoTarget], [ErrSelf], [ErrHeld], [ErrUnstoppable], [ErrRestless],
// [ErrGuardLost], one of those of file systems, or the context's. A guard freezes once.
func (g *Guard) Freeze(ctx context.Context, o Order) (Report, error) {
	if err := o.Validate(); err != nil {
		return Report{}, err
	}
	m, err := g.ask(ctx, message{Op: opFreeze, Order: &o})
	if err == nil && m.Op != opFrozen {
		err = fmt.Errorf("%w: %.20q instead of frozen", errMessage, m.Op)
	}
	if err == nil && m.Report != nil {
		g.stays.Store(o.Detach)
		return *m.Report, nil
	}
	g.Close()
	if late := g.awaitEnd(thawPatience); late != nil {
		err = errors.Join(err, late)
	}
	r := Report{}
	if m.Report != nil {
		r = *m.Report
	}
	return r, err
}

// Thaw thaws, and waits for it. The error is nil if it was this call that has ended
// the freeze, and all of it: [ErrBroken] if somebody else had ended a part before.
// After two minutes without the guard's word it is [ErrNotThawed]: a disk takes that long,
// or somebody holds the guard, as a debugger does.
func (g *Guard) Thaw() error { return g.thaw(thawPatience) }

func (g *Guard) thaw(patience time.Duration) error {
	g.wake()
	if err := g.sock.send(message{Op: opThaw}, -1); err != nil {
		g.Close()
	}
	if err := g.awaitEnd(patience); err != nil {
		return err
	}
	return g.err
}

// Extend sets the deadline anew, counted from now; less than 0 takes it away.
func (g *Guard) Extend(timeout time.Duration) (State, error) {
	return g.inquire(message{Op: opExtend, Timeout: timeout})
}

// Renew lets the guard of an order with a Lease know that the requester is well. It does
// not wait: a guard that has no time to listen has heard enough for now, and one that has
// ended closes Done.
func (g *Guard) Renew() { _ = g.sock.offer(message{Op: opRenew}) }

// State asks the guard what it holds.
func (g *Guard) State() (State, error) { return g.inquire(message{Op: opState}) }

func (g *Guard) inquire(m message) (State, error) {
	ctx, cancel := context.WithTimeout(context.Background(), guardPatience)
	defer cancel()
	g.wake()
	answer, err := g.ask(ctx, m)
	if err != nil {
		return State{}, err
	}
	if answer.State == nil {
		return State{}, fmt.Errorf("%w: %.20q instead of a state", errMessage, answer.Op)
	}
	return *answer.State, nil
}

// Done is closed when everything is thawed, whoever has done it, or when a
// detached freeze has been left to itself.
func (g *Guard) Done() <-chan struct{} { return g.done }

// Err says, when Done is closed, why it is: nil after [Guard.Thaw], else
// [ErrDeadline], [ErrLease], [ErrGuardLost], [ErrThawed] or [ErrBroken].
func (g *Guard) Err() error {
	select {
	case <-g.done:
		if g.err == nil {
			return ErrThawed
		}
		return g.err
	default:
		return nil
	}
}

// leave is Close for a guard that does not end: it thaws when it can, and nobody waits.
func (g *Guard) leave() {
	g.stays.Store(true)
	g.Close()
}

// Close leaves the guard. What it holds is thawed, unless the order was to detach, or
// the guard was adopted. It does not wait.
func (g *Guard) Close() {
	g.closed.Store(true)
	how := unix.SHUT_WR // the guard will tell of the thaw
	if g.stays.Load() {
		how = unix.SHUT_RDWR
	}
	if conn, err := g.sock.file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), how) })
	}
}
