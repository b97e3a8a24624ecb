package freezer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// walk freezes processes by SIGSTOP and thaws them by SIGCONT.
//
// A process is signalled when its parent is known to have stopped, so that no parent
// sees a child stop (WUNTRACED, waitpid(2)); and continued before its parent is.
// SIGCONT takes effect before kill returns, so the way back needs no looks.
//
// Invariant: batches has everything that was ever signalled, and all of it is in the
// journal.
type walk struct {
	*scope
	order *Order
	until time.Time // give up
	note  func(...entry) error

	batches [][]*member
	alive   map[int32]*member
	zombies map[int32]uint64 // number to start, of the pass before
	traced  []int32          // found to be held by a tracer in the last pass
	others  []stat           // found to be stopped by others in the last pass
	restive []stat           // those of them that have threads which are not
	unrest  string           // what else has kept the last pass from being the last
	rounds  int
	report  *Report

	frozen bool  // everything has stopped, and nothing was continued by us
	loosed int   // members that others had continued by the time of the thaw
	last   int32 // one of them
}

// member is a process that was signalled, or is about to be.
type member struct {
	fds         pinned
	pid, parent int32
	start       uint64
	told        time.Time // when it got SIGSTOP
	quiet       bool      // was seen to have stopped, or to have ended
	stuck       string    // why it will not stop; empty if it may
}

func (m *member) entry() entry { return entry{kind: entryPID, pid: m.pid, start: m.start} }

// freeze stops what the scope is for. It has not succeeded before a pass over the
// process table has found nothing that runs, with everything that earlier ones had
// found stopped all the time.
//
// A process may fork and end during a pass. But process numbers grow, and the table
// is read in their order: the child is always ahead of the reader. So one that is
// never found has been born by one that was listed and had ended when it was looked
// at, or numbers have begun anew: then there is another pass.
func (w *walk) freeze(ctx context.Context) error {
	w.until = time.Now().Add(w.order.within())
	w.alive = map[int32]*member{}
	for pause := firstPause; ; {
		w.rounds++
		fresh, settled, err := w.pass()
		if err != nil {
			return err
		}
		late := time.Now().After(w.until)
		if ctx.Err() != nil || late && len(fresh) > 0 {
			closeAll([][]*member{fresh})
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: the last of %d passes found %d new ones", ErrRestless, w.rounds, len(fresh))
		}
		if len(fresh) > 0 {
			if err := w.stop(ctx, fresh); err != nil {
				return err
			}
			pause = firstPause
			continue
		}
		if settled && (late || len(w.restive) == 0) {
			loose := w.loose()
			if len(loose) == 0 {
				return w.arrive()
			}
			if err := w.again(ctx, loose, late); err != nil {
				return err
			}
		} else if late {
			return fmt.Errorf("%w: in the last of %d passes %s", ErrRestless, w.rounds, w.unrest)
		}
		// What is waited for needs a processor, and ours come before all others'.
		time.Sleep(pause)
		pause = min(2*pause, mostPause)
	}
}

// again stops members that others have continued. late says that there is no more time
// for that.
func (w *walk) again(ctx context.Context, loose []*member, late bool) error {
	if !late {
		return w.stop(ctx, loose)
	}
	for _, m := range loose {
		m.stuck = "is continued by somebody again and again"
		s, _ := readStat(m.fds.stat)
		if err := w.miss(&s, m.pid, m.stuck); err != nil {
			return err
		}
	}
	return nil
}

// arrive is the end of a freeze: nothing runs that could be stopped.
func (w *walk) arrive() error {
	for i := range w.restive {
		s := &w.restive[i]
		if err := w.miss(s, s.pid, "was stopped by somebody else, and not all of its threads have"); err != nil {
			return err
		}
	}
	if err := w.checkTraced(); err != nil {
		return err
	}
	if len(w.alive) == 0 && !w.chains() && w.deserted() {
		return fmt.Errorf("%w: all that was named has ended", ErrNoTarget)
	}
	w.frozen = true
	return nil
}

// miss notes that a process does not stop, which is an error unless the order allows it.
func (w *walk) miss(s *stat, pid int32, why string) error {
	p := w.describe(s, why)
	p.PID = int(pid) // the stat is empty if the process has just ended
	w.report.miss(p)
	if w.order.Partial {
		return nil
	}
	return fmt.Errorf("%w: process %d (%s) %s", ErrUnstoppable, pid, p.Name, why)
}

// pass looks at all processes but those that are stopped, and returns those that run.
// It is settled if nothing can have escaped it.
func (w *walk) pass() (fresh []*member, settled bool, err error) {
	before, err := w.proc.lastNumber()
	if err != nil {
		return nil, false, err
	}
	var table []sighting
	var failed error
	err = w.list(func(pids []int32) {
		pids = slices.DeleteFunc(pids, func(pid int32) bool { return w.alive[pid] != nil })
		part := make([]sighting, len(pids))
		skip := make([]bool, len(pids))
		errs := make([]error, parts(len(pids)))
		inParallel(len(pids), func(worker, i int) {
			var err error
			if part[i], skip[i], err = w.look(pids[i]); err != nil {
				errs[worker] = err
			}
		})
		failed = errors.Join(failed, errors.Join(errs...))
		for i := range part {
			if !skip[i] {
				table = append(table, part[i])
			}
		}
	})
	if err = errors.Join(err, failed); err != nil {
		if errors.Is(err, unix.EMFILE) {
			err = fmt.Errorf("two open files are needed for each process, and the guard may not have as many (RLIMIT_NOFILE): %w", unix.EMFILE)
		}
		for i := range table {
			table[i].fds.close()
		}
		return nil, false, fmt.Errorf("look at all processes: %w", err)
	}
	after, err := w.proc.lastNumber()
	if err != nil {
		return nil, false, err
	}
	// Those that were left out have been there all the time if they are now.
	dead, wrapped := w.bury(), w.chains() && after < before
	fresh, settled, err = w.choose(table)
	switch {
	case dead > 0:
		w.unrest = fmt.Sprintf("%d that had been stopped were killed", dead)
	case wrapped:
		w.unrest = "process numbers began anew"
	}
	return fresh, settled && dead == 0 && !wrapped, err
}

// choose returns the processes of a table that have to be stopped.
func (w *walk) choose(table []sighting) (fresh []*member, settled bool, err error) {
	settled = true
	parents := make(map[int32]int32, len(w.alive))
	for pid, m := range w.alive {
		parents[pid] = m.parent
	}
	zombies := map[int32]uint64{}
	w.traced, w.others, w.restive = nil, nil, nil
	unsettle := func(pid int32, what string) {
		settled, w.unrest = false, fmt.Sprintf("process %d %s", pid, what)
	}
	marks := w.chosen(table, parents)
	for i := range table {
		p := &table[i]
		switch {
		case p.gone:
			if w.chains() {
				unsettle(p.pid, "ended")
			}
			continue
		case !marks[i] || w.sparing(&p.stat):
			p.fds.close()
			continue
		case p.ended():
			if zombies[p.pid] = p.start; w.zombies[p.pid] != p.start && w.chains() {
				unsettle(p.pid, "had ended")
			}
			p.fds.close()
			continue
		case p.state == 'T' || p.state == 't':
			// Not by us: it is not ours to continue.
			if p.state == 't' {
				w.traced = append(w.traced, p.pid)
			}
			w.others = append(w.others, p.stat)
			if quiet, _ := w.stopped(&p.stat); !quiet {
				w.restive = append(w.restive, p.stat)
			}
			p.fds.close()
			continue
		}
		if p.fds == unpinned {
			fds, now, err := w.proc.pin(p.pid)
			if err != nil && !vanished(err) {
				return fresh, false, fmt.Errorf("open process %d: %w", p.pid, err)
			}
			if err != nil || now.start != p.start {
				fds.close()
				unsettle(p.pid, "could be read, and not opened")
				continue
			}
			p.fds = fds
		}
		fresh = append(fresh, &member{fds: p.fds, pid: p.pid, parent: p.parent, start: p.start})
	}
	w.zombies = zombies
	return fresh, settled, nil
}

// bury forgets the numbers of members that have been killed, and returns how many.
func (w *walk) bury() (dead int) {
	polls := make([]unix.PollFd, 0, len(w.alive))
	members := make([]*member, 0, len(w.alive))
	for _, m := range w.alive {
		polls = append(polls, unix.PollFd{Fd: int32(m.fds.pidfd), Events: unix.POLLIN})
		members = append(members, m)
	}
	for {
		_, err := unix.Poll(polls, 0)
		if err != unix.EINTR {
			break
		}
	}
	for i, m := range members {
		if polls[i].Revents != 0 {
			delete(w.alive, m.pid)
			dead++
		}
	}
	return dead
}

// stop signals processes, parents first, and waits until they have stopped.
func (w *walk) stop(ctx context.Context, fresh []*member) error {
	levels := generations(fresh)
	for i, level := range levels {
		if i > 0 {
			if err := w.settle(ctx, parentsOf(level, w.alive)); err != nil {
				closeAll(levels[i:])
				return err
			}
		}
		if err := w.signal(level); err != nil {
			closeAll(levels[i+1:])
			return err
		}
	}
	return w.settle(ctx, fresh)
}

func closeAll(levels [][]*member) {
	for _, level := range levels {
		for _, m := range level {
			m.fds.close()
		}
	}
}

// generations orders processes by their descent from one another.
func generations(fresh []*member) (levels [][]*member) {
	byPID := make(map[int32]*member, len(fresh))
	for _, m := range fresh {
		byPID[m.pid] = m
	}
	depths := make(map[int32]int, len(fresh))
	for _, m := range fresh {
		var line []*member // from m up to where the depth is known
		depth := -1
		for at := m; at != nil; at = byPID[at.parent] {
			if d, ok := depths[at.pid]; ok {
				depth = d
				break
			}
			depths[at.pid] = 0 // a circle ends here
			line = append(line, at)
		}
		for _, at := range slices.Backward(line) {
			depth++
			depths[at.pid] = depth
		}
	}
	for _, m := range fresh {
		d := depths[m.pid]
		for len(levels) <= d {
			levels = append(levels, nil)
		}
		levels[d] = append(levels[d], m)
	}
	return slices.DeleteFunc(levels, func(l []*member) bool { return len(l) == 0 })
}

// parentsOf is those parents of processes that are to stop before these do.
func parentsOf(level []*member, alive map[int32]*member) (parents []*member) {
	last := int32(0)
	for _, m := range level {
		if m.parent == last { // siblings are often neighbours
			continue
		}
		last = m.parent
		if p := alive[m.parent]; p != nil && !p.quiet && p.stuck == "" {
			parents = append(parents, p)
		}
	}
	slices.SortFunc(parents, func(a, b *member) int { return int(a.pid - b.pid) })
	return slices.Compact(parents)
}

// signal sends SIGSTOP.
func (w *walk) signal(level []*member) error {
	entries := make([]entry, 0, len(level))
	batch := make([]*member, 0, len(level))
	for _, m := range level {
		if m.told.IsZero() {
			entries = append(entries, m.entry())
			batch = append(batch, m)
			w.alive[m.pid] = m
		}
	}
	w.batches = append(w.batches, batch)
	if len(entries) > 0 {
		if err := w.note(entries...); err != nil {
			return err
		}
	}
	now := time.Now()
	errs := make([]error, parts(len(level)))
	inParallel(len(level), func(worker, i int) {
		m := level[i]
		m.told, m.quiet = now, false
		switch err := unix.PidfdSendSignal(m.fds.pidfd, unix.SIGSTOP, nil, 0); {
		case err == unix.ESRCH:
			m.quiet = true
		case err != nil:
			errs[worker] = fmt.Errorf("stop process %d: %w", m.pid, err)
		}
	})
	if err := errors.Join(errs...); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: %w", ErrPermission, err)
		}
		return err
	}
	return nil
}

// checkTraced finds processes that do not run only because of a tracer that does. It
// could let them run at any time.
func (w *walk) checkTraced() error {
	for _, pid := range w.traced {
		tracer := w.proc.tracer(pid)
		s, err := w.proc.stat(pid)
		if err != nil || s.state != 't' {
			continue
		}
		if t := w.alive[tracer]; t != nil && t.stuck == "" {
			continue
		}
		why := "is held by a tracer"
		if tracer != 0 { // it is in our pid namespace
			why += ", process " + strconv.Itoa(int(tracer))
		}
		if m := w.alive[pid]; m != nil {
			m.stuck = why
		}
		if err := w.miss(&s, pid, why); err != nil {
			return err
		}
	}
	return nil
}

// checkHeld refuses processes that another guard has stopped: it would continue them
// when its own time is up.
func (w *walk) checkHeld(guards []record) error {
	if len(w.others) == 0 {
		return nil
	}
	for i := range guards {
		if guards[i].foreign() {
			continue // its numbers are of others
		}
		held := map[int32]uint64{}
		for _, e := range guards[i].entries {
			if e.kind == entryPID {
				held[e.pid] = e.start
			}
		}
		for _, s := range w.others {
			if start, ok := held[s.pid]; ok && start == s.start {
				return guards[i].held()
			}
		}
	}
	return nil
}

// held counts the members that have stopped.
func (w *walk) held() (n int) {
	for _, m := range w.alive {
		if m.stuck == "" {
			n++
		}
	}
	return n
}

func (w *walk) describe(s *stat, why string) Process {
	return Process{
		PID: int(s.pid), Parent: int(s.parent), Start: s.start,
		State: string(s.state), Name: w.proc.name(s.pid), Why: why,
	}
}

// inspect counts the members that others have continued. It comes before the first is
// continued by us: that one might continue others.
func (w *walk) inspect() {
	members := slices.Concat(w.batches...)
	running := make([]bool, len(members))
	inParallel(len(members), func(_, i int) {
		m := members[i]
		if m.stuck != "" {
			return
		}
		s, err := readStat(m.fds.stat)
		running[i] = err == nil && !s.halted() && s.flags&exiting == 0 && !inFrozenCgroup(w.proc, m.pid)
	})
	for i, m := range members {
		if running[i] {
			w.loosed++
			w.last = m.pid
		}
	}
}

func (w *walk) brokenBy() string {
	switch w.loosed {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("process %d ran", w.last)
	}
	return fmt.Sprintf("process %d and %d more ran", w.last, w.loosed-1)
}

// thaw continues everything that was signalled, children first.
func (w *walk) thaw() error {
	if w.frozen {
		w.inspect()
		w.frozen = false
	}
	var failed error
	for _, level := range slices.Backward(generations(slices.Concat(w.batches...))) {
		errs := make([]error, parts(len(level)))
		inParallel(len(level), func(worker, i int) {
			m := level[i]
			if err := unix.PidfdSendSignal(m.fds.pidfd, unix.SIGCONT, nil, 0); err != nil && err != unix.ESRCH {
				errs[worker] = fmt.Errorf("continue process %d: %w", m.pid, err)
			}
		})
		failed = errors.Join(failed, errors.Join(errs...))
	}
	return failed
}

// close closes what is open of the members.
func (w *walk) close() {
	closeAll(w.batches)
	w.proc.close()
}

// smallLoad is how many system calls are made by one thread sooner than by several.
const smallLoad = 64

func parts(n int) int {
	if n < smallLoad {
		return 1
	}
	return runtime.GOMAXPROCS(0)
}

// inParallel calls f for 0 to n-1 on all processors. Of each worker, a number below
// parts(n), the calls come one after the other.
func inParallel(n int, f func(worker, i int)) {
	workers := parts(n)
	if workers == 1 {
		for i := range n {
			f(0, i)
		}
		return
	}
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for i := n * worker / workers; i < n*(worker+1)/workers; i++ {
				f(worker, i)
			}
		})
	}
	wg.Wait()
}
