package freezer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guard is the process that freezes and thaws.
type guard struct {
	dir       string
	requester *packets
	left      bool // the requester has gone
	peer      process
	adopters  map[*packets]bool
	timer     int // timerfd
	order     *Order
	named     map[int32]uint64 // as in host
	holdings  []holding
	journal   *journal
	report    Report
	frozen    bool
	until     time.Duration // the deadline, on CLOCK_BOOTTIME; 0 is never
	heard     time.Duration // when the requester has spoken last, on CLOCK_BOOTTIME
	events    chan event
}

// event is something that the guard has to answer.
type event struct {
	from *packets // nil for the timer and signals
	msg  message
	err  error // the socket's end
	fd   int   // of a new connection
}

// Events without a socket have these instead of an operation.
const (
	opDeadline  = "deadline"
	opTerminate = "terminate"
	opConnect   = "connect"
	opDisturbed = "disturbed" // with what somebody else has thawed, as the error
)

// lockPause is the pause between two tries for the lock of a directory.
const lockPause = 5 * time.Millisecond

// guardMain is the life of a guard.
func guardMain() int {
	for s := syscall.Signal(1); s < 32; s++ {
		if s != syscall.SIGCHLD && s != syscall.SIGURG && s != syscall.SIGTERM {
			signal.Ignore(s)
		}
	}
	unix.CloseOnExec(guardSocket)
	sock, err := newPackets(guardSocket)
	if err != nil {
		return 1
	}
	g := &guard{dir: os.Getenv(dirVariable), requester: sock, adopters: map[*packets]bool{}, events: make(chan event)}
	err = g.prepare()
	if err != nil {
		_ = sock.send(fail(opFailed, err), -1)
		return 1
	}
	for e := range g.events {
		switch {
		case e.err != nil || e.msg.Op == opTerminate:
			return g.end(opFailed, ErrThawed) // nothing is frozen
		case e.msg.Op == opPrepare:
			if err := g.ready(e.msg.Order); err != nil {
				return g.end(opFailed, err)
			}
			g.answer(e.from, message{Op: opPrepared, State: g.state()})
		case e.msg.Op == opFreeze:
			return g.obey(e.msg.Order)
		case e.msg.Op == opThaw:
			return g.end(opThawed, nil)
		case e.msg.Op == opRenew: // nothing is frozen that could be for too long
		default:
			g.answer(e.from, fail(opFailed, fmt.Errorf("%w: %s before freeze", errMessage, e.msg.Op)))
		}
	}
	return 0
}

// prepare does what can be done before the order.
func (g *guard) prepare() error {
	var err error
	if g.report.Warnings, err = settleDown(); err != nil {
		return err
	}
	peer, err := unix.GetsockoptUcred(guardSocket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("find out who asks: %w", err)
	}
	g.peer = process{pid: peer.Pid}
	g.timer, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make a timer: %w", err)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("open the guard's own process: %w", err)
	}
	defer unix.Close(self)
	// These goroutines last as long as the process.
	alarm := os.NewFile(uintptr(g.timer), "timer")
	go func() {
		var ticks [8]byte
		for {
			if _, err := io.ReadFull(alarm, ticks[:]); err != nil {
				return
			}
			g.events <- event{msg: message{Op: opDeadline}}
		}
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		for range signals {
			g.events <- event{msg: message{Op: opTerminate}}
		}
	}()
	go g.listen(g.requester)
	return g.requester.send(message{Op: opHello}, self)
}

// listen passes on what comes over a socket, to its end.
func (g *guard) listen(p *packets) {
	for {
		m, fd, err := p.receive()
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		if err != nil && (errors.Is(err, errMessage) || errors.Is(err, ErrOrder)) {
			g.events <- event{from: p, msg: fail(opFailed, err)}
			continue
		}
		g.events <- event{from: p, msg: m, err: err}
		if err != nil {
			return
		}
	}
}

// ready does what can be done for an order before it is to be carried out. Nothing is
// frozen, so whoever has gone meanwhile can wait.
func (g *guard) ready(o *Order) error {
	g.order = o
	setTitle(guardName + ": preparing")
	unlock, err := lockDir(context.Background(), g.dir)
	if err != nil {
		return err
	}
	h, err := g.open()
	unlock()
	if err != nil {
		return err
	}
	for _, one := range g.holdings {
		if err := one.ready(h); err != nil {
			return err
		}
	}
	setTitle(guardName + ": prepared")
	return nil
}

// obey freezes, and stays until everything is thawed.
func (g *guard) obey(o *Order) int {
	g.order = o
	since := time.Now()
	g.heard = boottime()
	if o.timeout() > 0 {
		g.until = g.heard + o.timeout()
	}
	until := g.until
	setTitle(guardName + ": freezing")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	result := make(chan error, 1)
	err := g.arm()
	if err == nil {
		go func() {
			err := g.freeze(ctx, since, until)
			g.report.Took = time.Since(since)
			result <- err
		}()
	} else {
		result <- err
	}
	for {
		select {
		case err := <-result:
			if err != nil {
				return g.end(opFailed, err)
			}
			g.frozen = true
			g.journal.rec.Since = time.Now()
			g.title()
			g.tell(message{Op: opFrozen, Report: &g.report, State: g.state()})
			keepWatch(g.holdings, func(what string) {
				g.events <- event{msg: message{Op: opDisturbed, Error: what}}
			})
		case e := <-g.events:
			over, why := g.handle(&e)
			if !over {
				continue
			}
			if !g.frozen {
				if why == nil {
					why = ErrThawed
				}
				cancel(why)
				<-result
				return g.end(opFailed, why)
			}
			return g.end(opThawed, why)
		}
	}
}

// handle answers an event. It says whether the freeze is over, and why before its
// time.
func (g *guard) handle(e *event) (over bool, why error) {
	if e.from != nil && e.from == g.requester {
		g.heard = boottime()
	}
	switch {
	case e.err != nil:
		if e.from != g.requester {
			e.from.close()
			delete(g.adopters, e.from)
			return false, nil
		}
		g.left = true
		return !g.order.Detach || !g.frozen, fmt.Errorf("%w: the requester has gone", ErrThawed)
	case e.msg.Op == opDeadline:
		return g.overdue()
	case e.msg.Op == opTerminate:
		return true, fmt.Errorf("%w: the guard was told to end", ErrThawed)
	case e.msg.Op == opDisturbed && e.from == nil:
		return true, fmt.Errorf("%w: %s", ErrBroken, e.msg.Error)
	case e.msg.Op == opConnect:
		g.adopt(e.fd)
	case e.msg.Op == opThaw:
		return true, nil
	case e.msg.Op == opRenew:
	case !g.frozen:
		g.answer(e.from, fail(opFailed, fmt.Errorf("%w: not frozen yet", ErrOrder)))
	case e.msg.Op == opState:
		g.answer(e.from, message{Op: opState, State: g.state()})
	case e.msg.Op == opExtend:
		if err := g.extend(e.msg.Timeout); err != nil {
			g.answer(e.from, fail(opFailed, err))
			break
		}
		g.answer(e.from, message{Op: opState, State: g.state()})
	case e.msg.Op == opFailed:
		g.answer(e.from, e.msg)
	default:
		g.answer(e.from, fail(opFailed, fmt.Errorf("%w: %.20q", errMessage, e.msg.Op)))
	}
	return false, nil
}

// freeze opens everything, and then freezes it.
func (g *guard) freeze(ctx context.Context, since time.Time, until time.Duration) error {
	// Two guards that look at the same processes at the same time would each take the
	// other's for stopped by strangers.
	unlock, err := lockDir(ctx, g.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := g.open(); err != nil {
		return err
	}
	if err := g.journal.note(entry{kind: entrySince, since: since}, entry{kind: entryUntil, until: until}); err != nil {
		return err
	}
	g.journal.rec.Since, g.journal.rec.Until = since, until
	if err := g.serve(); err != nil {
		return err
	}
	for _, one := range g.holdings {
		if err := one.freeze(ctx, g.journal.note, &g.report); err != nil {
			return err
		}
	}
	return nil
}

// open gets hold of all that the order is for. What was opened for it before is
// opened anew: others may have frozen something of it meanwhile, or be at it now.
func (g *guard) open() (*host, error) {
	others, err := records(g.dir)
	if err != nil {
		return nil, err
	}
	if err := g.register(); err != nil {
		return nil, err
	}
	h := &host{dir: g.dir, order: g.order, requester: int(g.peer.pid), others: others, named: g.named}
	before := g.holdings
	g.holdings = holdings(g.order)
	for _, one := range g.holdings {
		if err := one.open(h); err != nil {
			return nil, err
		}
	}
	g.named = h.named
	for _, one := range before {
		one.release()
	}
	return h, nil
}

// register starts the journal, by which other guards know us and let us run.
func (g *guard) register() error {
	if g.journal != nil {
		return nil
	}
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.close()
	peer, err := proc.stat(g.peer.pid)
	if err != nil {
		return fmt.Errorf("look at who asks: %w", err)
	}
	self, err := proc.stat(int32(os.Getpid()))
	if err != nil {
		return fmt.Errorf("look at the guard itself: %w", err)
	}
	g.peer.start = peer.start
	g.journal, err = createJournal(g.dir, record{
		Boot: bootID(), PIDNS: pidNamespace(), Guard: process{self.pid, self.start}, Requester: g.peer,
		Detach: g.order.Detach, Lease: g.order.Lease, Targets: g.order.Targets,
	})
	return err
}

// thawTries is how often thawing is tried.
const thawTries = 5

// end thaws everything and tells everybody. The journal stays only if that failed.
func (g *guard) end(op string, why error) int {
	var failed error
	for try := range thawTries {
		if failed = thawAll(g.holdings); failed == nil {
			break
		}
		time.Sleep(time.Duration(try) * 10 * time.Millisecond)
	}
	if g.journal != nil && failed == nil {
		_ = os.Remove(g.socketPath())
		failed = g.journal.remove()
	}
	if failed == nil {
		if broken := finishAll(g.holdings); why == nil {
			why = broken
		}
	} else {
		why = fmt.Errorf("%w: %w", ErrNotThawed, failed)
	}
	m := message{Op: op}
	if why != nil {
		m = fail(op, why)
	}
	m.Report = &g.report
	g.tell(m)
	if failed != nil {
		return 1
	}
	return 0
}

// overdue says whether the time is up, or the requester silent for too long. If not so,
// the timer has been overtaken by a word of one or the other, and is set anew.
func (g *guard) overdue() (over bool, why error) {
	now := boottime()
	switch {
	case g.until > 0 && g.until <= now:
		return true, ErrDeadline
	case g.order.Lease > 0 && g.heard+g.order.Lease <= now:
		return true, fmt.Errorf("%w for %v", ErrLease, g.order.Lease)
	}
	err := g.arm()
	return err != nil, err
}

// arm sets the timer to the deadline, or to the end of the lease as it is now, if that
// comes first.
func (g *guard) arm() error {
	next := g.until
	if silent := g.heard + g.order.Lease; g.order.Lease > 0 && (next == 0 || silent < next) {
		next = silent
	}
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(next))} // 0 is never
	if err := unix.TimerfdSettime(g.timer, unix.TFD_TIMER_ABSTIME, &at, nil); err != nil {
		return fmt.Errorf("set the timer: %w", err)
	}
	return nil
}

func (g *guard) extend(timeout time.Duration) error {
	until := time.Duration(0)
	if timeout >= 0 {
		until = boottime() + timeout
	}
	if err := g.journal.note(entry{kind: entryUntil, until: until}); err != nil {
		return err
	}
	g.until, g.journal.rec.Until = until, until
	g.title()
	return g.arm()
}

func (g *guard) title() {
	text := guardName + ": " + g.report.String()
	if g.until > 0 {
		text += " until " + wall(g.until).Format(time.TimeOnly)
	}
	if g.order.Lease > 0 {
		text += fmt.Sprintf(", or %v without a word from %d", g.order.Lease, g.peer.pid)
	}
	setTitle(text)
}

func (g *guard) state() *State {
	s := g.journal.rec.state()
	s.Detached = g.left
	s.Report = g.report
	return &s
}

// tell sends a message to everybody.
func (g *guard) tell(m message) {
	g.answer(g.requester, m)
	if m.Op == opThawed {
		for p := range g.adopters {
			g.answer(p, m)
		}
	}
}

// answer ignores errors: that the other end has gone is an event of its own.
func (g *guard) answer(p *packets, m message) { _ = p.send(m, -1) }

// lockDir keeps other guards from freezing.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for until := time.Now().Add(DefaultWithin); ; time.Sleep(lockPause) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if ctx.Err() != nil {
			_ = f.Close()
			return nil, context.Cause(ctx)
		}
		if time.Now().After(until) {
			_ = f.Close()
			return nil, fmt.Errorf("%w: it is still at it", ErrHeld)
		}
	}
}

func (g *guard) socketPath() string { return filepath.Join(g.dir, g.journal.rec.ID+socketEnd) }

// maxAdopters bounds the connections of others than the requester.
const maxAdopters = 16

// serve lets others connect who may use the directory.
func (g *guard) serve() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: g.socketPath()}); err == nil {
		err = unix.Listen(fd, maxAdopters)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("listen at %s: %w", g.socketPath(), err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	go func() { // it lasts as long as the process
		for {
			peer := -1
			_ = conn.Read(func(s uintptr) bool {
				var err error
				peer, _, err = unix.Accept4(int(s), unix.SOCK_CLOEXEC)
				return err != unix.EAGAIN
			})
			if peer >= 0 {
				g.events <- event{msg: message{Op: opConnect}, fd: peer}
			} else {
				time.Sleep(lockPause) // out of descriptors
			}
		}
	}()
	return nil
}

// adopt takes a connection of somebody who is not the requester.
func (g *guard) adopt(fd int) {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(peer.Uid) != os.Geteuid() || len(g.adopters) >= maxAdopters {
		_ = unix.Close(fd)
		return
	}
	p, err := newPackets(fd)
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	g.adopters[p] = true
	go g.listen(p)
}
