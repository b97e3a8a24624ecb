package freezer

import (
	"context"
	"time"
)

// Between two looks the pauses grow from the first to the longest.
const firstPause, mostPause = 50 * time.Microsecond, 2 * time.Millisecond

// settle waits until processes that were signalled have stopped.
func (w *walk) settle(ctx context.Context, members []*member) error {
	waiting := members
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		if !w.sample(waiting) && time.Since(waiting[0].told) < w.order.patience() {
			// They need the processors that looking at all of them would take.
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			time.Sleep(pause)
			continue
		}
		states := make([]stat, len(waiting))
		inParallel(len(waiting), func(_, i int) {
			m := waiting[i]
			if !m.quiet && m.stuck == "" {
				m.quiet, states[i] = w.check(m)
			}
		})
		var left []*member
		for i, m := range waiting {
			switch {
			case m.quiet || m.stuck != "":
			case w.giveUp(m, &states[i]):
				if err := w.miss(&states[i], m.pid, m.stuck); err != nil {
					return err
				}
			default:
				left = append(left, m)
			}
		}
		if waiting = left; len(waiting) == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		time.Sleep(pause)
	}
}

// sample looks at a few of many, and says whether these have stopped.
func (w *walk) sample(waiting []*member) bool {
	const few = 16
	for i := range few {
		if len(waiting) < smallLoad {
			break
		}
		if m := waiting[i*(len(waiting)-1)/(few-1)]; !m.quiet && m.stuck == "" {
			if quiet, _ := w.check(m); !quiet {
				return false
			}
		}
	}
	return true
}

// check looks whether a process that was signalled has stopped or ended.
func (w *walk) check(m *member) (quiet bool, s stat) {
	s, err := readStat(m.fds.stat)
	if err != nil || s.ended() {
		return true, s
	}
	quiet, s.state = w.stopped(&s)
	return quiet, s
}

// stopped says whether all threads of a process are: the first may have stopped, or
// ended, before others. The state is that of one that has not.
func (w *walk) stopped(s *stat) (bool, byte) {
	if !s.halted() || s.threads <= 1 {
		return s.halted(), s.state
	}
	quiet, state := true, s.state
	err := w.proc.threads(s.pid, func(t *stat) bool {
		if quiet = t.halted(); !quiet {
			state = t.state
		}
		return quiet
	})
	return quiet && (err == nil || vanished(err)), state
}

// giveUp decides whether a process that has not stopped yet ever will.
func (w *walk) giveUp(m *member, s *stat) bool {
	waited := time.Since(m.told)
	switch {
	case waited > w.order.patience() && s.state == 'D':
		m.stuck = "is in uninterruptible sleep"
	case waited > w.order.patience() && s.state != 'R' && inFrozenCgroup(w.proc, m.pid):
		m.quiet = true // and stops when that thaws, before it runs
		return false
	case waited > w.order.patience() && time.Now().After(w.until):
		m.stuck = "does not stop"
	}
	return m.stuck != ""
}

// loose returns the members that have stopped and run again: others can continue them
// as long as these have not stopped.
func (w *walk) loose() (running []*member) {
	members := make([]*member, 0, len(w.alive))
	for _, m := range w.alive {
		if m.stuck == "" {
			members = append(members, m)
		}
	}
	states := make([]stat, len(members))
	quiet := make([]bool, len(members))
	inParallel(len(members), func(_, i int) { quiet[i], states[i] = w.check(members[i]) })
	for i, m := range members {
		switch {
		case !quiet[i] && (states[i].state == 'R' || !inFrozenCgroup(w.proc, m.pid)):
			running = append(running, m)
		case states[i].state == 't':
			w.traced = append(w.traced, m.pid)
		}
	}
	return running
}
