package pidprobe

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by a [Watcher] or a [Stream] that has been closed.
var ErrClosed = errors.New("closed")

// pollEvery is how often processes without a pidfd are looked at.
const pollEvery = 500 * time.Millisecond

// Watcher reports the end of processes of this host. It needs one descriptor and
// some 200 bytes for each, no thread, and no time while nothing ends.
//
// It takes at most three quarters of the descriptors that this program may open;
// Go's runtime has raised the soft limit to the hard one. When these are used up,
// or the kernel is older than 5.3, further processes are looked at twice a second.
// The Watcher says so, and goes back to pidfds when it can.
//
// Invariant: a watch is in byFD if it has a pidfd, else in polled, until its
// process is reported or no longer watched.
type Watcher struct {
	dead func(Process)
	warn func(error)

	// The epoll set is itself waited for by the runtime's poller: no thread is
	// spent, and its read deadline wakes the loop.
	set   *os.File
	setFD int
	done  chan struct{} // closed when the loop has ended

	mu       sync.Mutex
	closed   bool
	watches  map[Process]*watch
	byFD     map[int32]*watch
	polled   map[*watch]struct{}
	pollAt   time.Time // when to look at polled
	deadline time.Time // the loop's, zero for none
	gone     []Process // found dead, to be reported by the loop
	trouble  error     // to be told by the loop
	seq      int32
	budget   int // pidfds at most
}

// watch is a process watched, and what is known of it: without a pidfd, a start
// time that was not given is read at the beginning. fd is its pidfd, -1 without;
// seq tells it from earlier ones of the same descriptor.
type watch struct {
	process, known Process
	fd, seq        int32
}

// NewWatcher starts a Watcher. It calls dead once for each process that it finds
// dead, and warn, if not nil, when it can watch less well than it should. Both are
// called by its one goroutine, without locks: they may call Watch and Unwatch, but
// not Close.
func NewWatcher(dead func(Process), warn func(error)) (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create an epoll set for processes: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // lets NewFile use the poller
		unix.Close(fd)
		return nil, fmt.Errorf("set up the epoll set for processes: %w", err)
	}
	if warn == nil {
		warn = func(error) {}
	}
	w := &Watcher{
		dead:    dead,
		warn:    warn,
		set:     os.NewFile(uintptr(fd), "epoll set of processes"),
		setFD:   fd,
		done:    make(chan struct{}),
		watches: make(map[Process]*watch),
		byFD:    make(map[int32]*watch),
		polled:  make(map[*watch]struct{}),
		budget:  budget(),
	}
	conn, err := w.set.SyscallConn()
	if err == nil {
		err = w.set.SetReadDeadline(time.Time{}) // fails if the poller did not take it
	}
	if err != nil {
		w.set.Close()
		return nil, fmt.Errorf("wait for the epoll set of processes: %w", err)
	}
	go w.loop(conn)
	return w, nil
}

// Watch begins to watch a process, whose death is then reported once. One that
// has ended already is reported at once. Watching a process again changes nothing.
// It returns [ErrPID] or [ErrClosed].
func (w *Watcher) Watch(p Process) error {
	if p.PID < 1 {
		return ErrPID
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	if _, ok := w.watches[p]; ok {
		return nil
	}
	e := &watch{process: p, known: p, fd: -1}
	w.watches[p] = e
	if p.ofAnotherBoot() {
		w.report(e)
		return nil
	}
	switch err := w.open(e); err {
	case nil:
	case ErrDead:
		w.report(e)
	default:
		if len(w.polled) == 0 {
			w.pollAt = time.Now().Add(pollEvery)
			w.trouble = fmt.Errorf("process %d, and maybe others, is looked at every %v instead of watched: %w", p.PID, pollEvery, err)
			w.wake(time.Now())
		}
		w.polled[e] = struct{}{}
		if st, ok := readStat(p.PID); ok && p.Start == 0 {
			e.known.Start = st.start
		}
	}
	return nil
}

// Identify is [Identify].
func (w *Watcher) Identify(p Process) (Process, error) { return Identify(p) }

// Unwatch ends a watch. A death that is just being reported may still be.
func (w *Watcher) Unwatch(p Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.watches[p]; ok && !w.closed {
		w.drop(e)
	}
}

// Len is the number of processes watched, and of those among them that are looked
// at from time to time for want of a pidfd.
func (w *Watcher) Len() (all, polled int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.watches), len(w.polled)
}

// Close ends all watches. When it has returned, nothing is reported any more.
func (w *Watcher) Close() error {
	w.mu.Lock()
	first := !w.closed
	w.closed = true
	w.mu.Unlock()
	var err error
	if first {
		err = w.set.Close()
	}
	<-w.done
	return err
}

// open puts a pidfd of the process into the epoll set. It returns [ErrDead], or
// why there can be none.
func (w *Watcher) open(e *watch) error {
	if len(w.byFD) >= w.budget {
		return errBudget
	}
	fd, err := unix.PidfdOpen(int(e.known.PID), 0)
	switch err {
	case nil:
	case unix.ESRCH:
		return ErrDead
	default:
		return err
	}
	if e.known.replaced() {
		unix.Close(fd)
		return ErrDead
	}
	w.seq++
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd), Pad: w.seq}
	if err := unix.EpollCtl(w.setFD, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(fd)
		return err
	}
	e.fd, e.seq = int32(fd), w.seq
	w.byFD[e.fd] = e
	return nil
}

// drop forgets a watch. The descriptor is taken out of the set before it is
// closed: a child between fork and exec may have a copy, and so keep it there.
func (w *Watcher) drop(e *watch) {
	delete(w.watches, e.process)
	delete(w.polled, e)
	if e.fd >= 0 {
		_ = unix.EpollCtl(w.setFD, unix.EPOLL_CTL_DEL, int(e.fd), nil)
		unix.Close(int(e.fd))
		delete(w.byFD, e.fd)
		e.fd = -1
	}
}

// report makes the loop call dead.
func (w *Watcher) report(e *watch) {
	w.drop(e)
	w.gone = append(w.gone, e.process)
	w.wake(time.Now())
}

// wake makes the loop look up at a time, or before.
func (w *Watcher) wake(at time.Time) {
	if w.deadline.IsZero() || at.Before(w.deadline) {
		w.deadline = at
		_ = w.set.SetReadDeadline(at)
	}
}

func (w *Watcher) loop(conn syscall.RawConn) {
	defer close(w.done)
	events := make([]unix.EpollEvent, 128)
	n := 0
	look := func(fd uintptr) bool {
		n = epollNow(int(fd), events)
		return n > 0
	}
	for {
		n = 0
		err := conn.Read(look)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !late {
			break // closed: nothing else ends the wait
		}
		gone, trouble := w.take(events[:n], late)
		if trouble != nil {
			w.warn(trouble)
		}
		for _, p := range gone {
			w.dead(p)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.watches {
		if e.fd >= 0 {
			unix.Close(int(e.fd)) // the set is closed, and its number may be another's
		}
	}
	clear(w.watches)
	clear(w.byFD)
	clear(w.polled)
}

// take removes the watches whose processes have ended, and returns these, with
// what there is to warn of.
func (w *Watcher) take(events []unix.EpollEvent, late bool) (gone []Process, trouble error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, nil
	}
	for _, ev := range events {
		if e := w.byFD[ev.Fd]; e != nil && e.seq == ev.Pad {
			w.drop(e)
			w.gone = append(w.gone, e.process)
		}
	}
	if late {
		w.deadline = time.Time{}
		_ = w.set.SetReadDeadline(time.Time{})
		if now := time.Now(); len(w.polled) > 0 && !now.Before(w.pollAt) {
			w.poll()
			w.pollAt = now.Add(pollEvery)
		}
		if len(w.polled) > 0 {
			w.wake(w.pollAt)
		}
	}
	gone, trouble = w.gone, w.trouble
	w.gone, w.trouble = nil, nil
	return gone, trouble
}

// poll looks at the processes without a pidfd, and gives them one if it can.
func (w *Watcher) poll() {
	for e := range w.polled {
		switch {
		case w.open(e) == nil:
			delete(w.polled, e)
		case Check(e.known) == Dead:
			w.drop(e)
			w.gone = append(w.gone, e.process)
		}
	}
}

// epollNow is what is ready in an epoll set, at this moment.
func epollNow(fd int, events []unix.EpollEvent) int {
	for {
		n, err := unix.EpollWait(fd, events, 0)
		if err != unix.EINTR {
			return max(n, 0)
		}
	}
}

var errBudget = errors.New("too many for the limit of open files (ulimit -n, LimitNOFILE=)")

// budget leaves a quarter of the descriptors to the rest of the program.
func budget() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 768
	}
	return int(min(lim.Cur, 1<<30) / 4 * 3)
}
