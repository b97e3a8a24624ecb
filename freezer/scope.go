package freezer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// scope tells which processes an order is for, and which of these must run on.
type scope struct {
	proc     *procfs
	machine  bool
	roots    []int32 // of trees
	sessions []int32
	listed   []int32
	named    map[int32]uint64 // by the order: number to start
	spared   map[int32]uint64 // number to start
}

// newScope reads the targets that are processes. requester is who has to thaw, or
// wants to know; guards are those that have something to thaw themselves.
func newScope(o *Order, requester int, guards []process) (*scope, error) {
	proc, err := openProc()
	if err != nil {
		return nil, err
	}
	s := &scope{proc: proc, named: map[int32]uint64{}, spared: map[int32]uint64{}}
	if err := s.read(o, requester, guards); err != nil {
		proc.close()
		return nil, err
	}
	return s, nil
}

func (s *scope) read(o *Order, requester int, guards []process) error {
	for _, t := range o.Targets {
		switch t.Kind {
		case KindMachine:
			s.machine = true
		case KindTree, KindProcesses:
			for _, pid := range t.PIDs {
				st, err := s.proc.stat(int32(pid))
				process := s.proc.status(int32(pid), "Tgid")
				switch {
				case err != nil || st.ended():
					return fmt.Errorf("%w: there is no process %d", ErrNoTarget, pid)
				case process != 0 && process != st.pid: // /proc has it, though it does not list it
					return fmt.Errorf("%w: there is no process %d, that is a thread of process %d", ErrNoTarget, pid, process)
				case st.flags&kernelThread != 0:
					return fmt.Errorf("%w: process %d is a thread of the kernel", ErrOrder, pid)
				case t.Kind == KindProcesses && slices.Contains(s.listed, st.pid):
					// Named twice it is still one.
				case t.Kind == KindTree:
					s.roots = append(s.roots, st.pid)
				default:
					s.listed = append(s.listed, st.pid)
				}
				s.named[st.pid] = st.start
				if s.proc.isGuard(&st) {
					s.spared[st.pid] = st.start
				}
			}
		case KindSession:
			if !s.populated(t.PIDs[0]) {
				return fmt.Errorf("%w: no process is in session %d", ErrNoTarget, t.PIDs[0])
			}
			s.sessions = append(s.sessions, int32(t.PIDs[0]))
		}
	}
	spare := []int{1, os.Getpid(), requester}
	spare = append(spare, o.Except...)
	for _, pid := range spare {
		if st, err := s.proc.stat(int32(pid)); err == nil {
			s.spared[st.pid] = st.start
		}
	}
	for _, g := range append(guards, s.proc.holding()...) {
		s.spared[g.pid] = g.start
	}
	for pid := int32(requester); pid > 1 && !o.Ancestors; {
		st, err := s.proc.stat(pid)
		if err != nil {
			return fmt.Errorf("find the ancestors of process %d: %w", requester, err)
		}
		s.spared[pid] = st.start
		pid = st.parent
	}
	for _, pid := range s.listed {
		if _, ok := s.spared[pid]; ok {
			return fmt.Errorf("%w: process %d", ErrSelf, pid)
		}
	}
	return nil
}

// deserted says whether all processes have ended that the order names.
func (s *scope) deserted() bool {
	for pid, start := range s.named {
		if st, err := s.proc.stat(pid); err == nil && !st.ended() && st.start == start {
			return false
		}
	}
	return true
}

// populated says whether a session has a process.
func (s *scope) populated(sid int) (found bool) {
	err := s.proc.list(func(pids []int32) {
		for _, pid := range pids {
			got, err := unix.Getsid(int(pid))
			found = found || err == nil && got == sid
		}
	})
	return found && err == nil
}

// explicit says whether the order names a process by its number.
func (s *scope) explicit(pid int32) bool { return slices.Contains(s.listed, pid) }

// chains says whether a process of the target can have a child that belongs to it as
// well, and end, and the child is still found by a look at the whole process table
// alone.
func (s *scope) chains() bool { return s.machine || len(s.sessions) > 0 }

// sighting is a process in the table. The descriptors are -1 but for a machine's
// candidates: see walk.pin.
type sighting struct {
	stat
	fds  pinned
	gone bool
}

// list calls each with the numbers of the processes that have to be looked at.
func (s *scope) list(each func(pids []int32)) error {
	if s.machine || len(s.roots) > 0 || len(s.sessions) > 0 {
		return s.proc.list(each)
	}
	each(slices.Clone(s.listed))
	return nil
}

// look reads one process. skip is true if it is certainly none of the target.
func (s *scope) look(pid int32) (sg sighting, skip bool, err error) {
	sg.pid, sg.fds = pid, unpinned
	if s.machine {
		sg.fds, sg.stat, err = s.proc.pin(pid)
	} else {
		if len(s.roots) == 0 && !s.explicit(pid) {
			// Cheaper than to read it, and sooner.
			sid, err := unix.Getsid(int(pid))
			if err == nil && !slices.Contains(s.sessions, int32(sid)) {
				return sg, true, nil
			}
		}
		sg.stat, err = s.proc.stat(pid)
	}
	if vanished(err) {
		sg.pid, sg.gone, err = pid, true, nil
	}
	return sg, false, err
}

// vanished says whether an error means that the process has ended.
func vanished(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }

// chosen marks the processes of a table that are of the target. held maps the numbers
// of those that are left out of the table to their parents'.
func (s *scope) chosen(table []sighting, held map[int32]int32) []bool {
	marks := make([]bool, len(table))
	tree := s.trees(table, held)
	for i := range table {
		p := &table[i]
		marks[i] = s.machine || tree[p.pid] || slices.Contains(s.sessions, p.session) || s.explicit(p.pid)
	}
	return marks
}

// trees is the set of all that is below the roots, and the roots.
func (s *scope) trees(table []sighting, held map[int32]int32) map[int32]bool {
	if len(s.roots) == 0 {
		return nil
	}
	children := map[int32][]int32{}
	for i := range table {
		children[table[i].parent] = append(children[table[i].parent], table[i].pid)
	}
	for pid, parent := range held {
		children[parent] = append(children[parent], pid)
	}
	tree := map[int32]bool{}
	next := slices.Clone(s.roots)
	for len(next) > 0 {
		pid := next[0]
		next = next[1:]
		if !tree[pid] { // the table is not of one instant, and may be circular
			tree[pid] = true
			next = append(next, children[pid]...)
		}
	}
	return tree
}

// sparedNumbers are the numbers of the processes that have to run on.
func (s *scope) sparedNumbers() []int32 { return slices.Sorted(maps.Keys(s.spared)) }

// sparing says whether a process has to run on.
func (s *scope) sparing(p *stat) bool {
	start, ok := s.spared[p.pid]
	return p.flags&kernelThread != 0 || p.pid == 1 || ok && start == p.start || s.proc.isGuard(p)
}

// pinned are two descriptors that are for one process, whoever has its number later:
// one to signal it, one to read its stat.
type pinned struct{ pidfd, stat int }

var unpinned = pinned{-1, -1}

// pin opens a process and reads it. That the reading succeeds after both were opened
// proves that they are for the same.
func (p *procfs) pin(pid int32) (pinned, stat, error) {
	fds := unpinned
	var err error
	if fds.stat, err = p.openStat(pid); err != nil {
		return unpinned, stat{}, err
	}
	if fds.pidfd, err = unix.PidfdOpen(int(pid), 0); err != nil {
		fds.close()
		if err == unix.EINVAL { // the number is a thread's now
			err = unix.ESRCH
		}
		return unpinned, stat{}, err
	}
	st, err := readStat(fds.stat)
	if err != nil {
		fds.close()
		return unpinned, stat{}, err
	}
	return fds, st, nil
}

func (f *pinned) close() {
	for _, fd := range []int{f.pidfd, f.stat} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	*f = unpinned
}
