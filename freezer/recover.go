package freezer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Recovered is a freeze whose guard was killed, and that has been undone.
type Recovered struct {
	ID        string    `json:"id"`
	Guard     int       `json:"guard"`          // its process number
	Since     time.Time `json:"since,omitzero"` // zero if the freeze had not begun
	Processes int       `json:"processes"`      // how many of them still lived
	Cgroups   int       `json:"cgroups"`
	// FileSystems counts those that were still frozen.
	FileSystems int `json:"filesystems,omitempty"`
}

const nothing = "nothing"

// String says in few words what was thawed.
func (r *Recovered) String() string {
	var parts []string
	count := func(n int, one, more string) {
		if n > 0 {
			parts = append(parts, plural(n, one, more))
		}
	}
	count(r.Processes, "process", "processes")
	count(r.Cgroups, "cgroup", "cgroups")
	count(r.FileSystems, "file system", "file systems")
	if len(parts) == 0 {
		return nothing
	}
	return strings.Join(parts, ", ")
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + more
}

// Recover undoes what guards have left that were killed, by the journals in a
// directory; "" is [Dir]. File systems and cgroups are thawed whatever pid namespace the
// guard was in, processes in ours alone: the others have numbers that mean nothing here.
// What another boot has left is not touched, and no process that has got the number of one
// that was frozen. A journal of another boot is removed, and one that is damaged as well,
// when all that could be understood of it has been done: the error says so. What cannot be
// thawed stays in its journal.
func Recover(dir string) (done []Recovered, err error) {
	if dir == "" {
		dir = Dir()
	}
	if _, serr := os.Stat(dir); errors.Is(serr, os.ErrNotExist) {
		return nil, nil
	}
	if dir, err = openDir(dir); err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*"+journalEnd))
	for _, path := range paths {
		r, rerr := recoverOne(path)
		if r != nil {
			done = append(done, *r)
		}
		err = errors.Join(err, rerr)
	}
	return done, err
}

// recoverOne undoes one journal, if its guard has gone.
func recoverOne(path string) (*Recovered, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open a journal: %w", err)
	}
	defer f.Close()
	for until := time.Now().Add(DefaultWithin); !orphaned(f); {
		if guarded(f) {
			return nil, nil
		}
		if time.Now().After(until) {
			// Of another pid namespace a guard may be of a version that guarded cannot see.
			if rec, err := readRecord(io.NewSectionReader(f, 0, maxJournal)); err == nil && rec.foreign() {
				return nil, nil
			}
			return nil, fmt.Errorf("somebody is at work on %s and does not end", path)
		}
		// Somebody else is at it. When we return it is to be done.
		time.Sleep(lockPause)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink == 0 {
		return nil, err // somebody else was faster
	}
	rec, err := readRecord(f)
	if err != nil && !errors.Is(err, errJournal) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	r := &Recovered{ID: rec.ID, Guard: int(rec.Guard.pid), Since: rec.Since}
	if rec.Boot == bootID() {
		left, uerr := undo(&rec, r)
		if len(left) > 0 {
			if len(left) < len(rec.entries) {
				// What somebody freezes from now on of the rest is not ours to thaw.
				uerr = errors.Join(uerr, rec.shorten(path, left))
			}
			if uerr == nil && r.String() == nothing {
				return nil, nil
			}
			return r, uerr // the journal stays
		}
	}
	if err != nil {
		err = fmt.Errorf("%s was removed: %w", path, err)
	}
	_ = os.Remove(strings.TrimSuffix(path, journalEnd) + socketEnd)
	return r, errors.Join(err, os.Remove(path))
}

// guarded says whether the guard lives that has begun a journal, or is about to. Nobody
// else has the lock of its open file description (fcntl_locking(2)), which can be seen from
// every pid namespace.
func guarded(f *os.File) bool {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock) != nil || lock.Type != unix.F_UNLCK {
		return true
	}
	rec, err := readRecord(io.NewSectionReader(f, 0, maxJournal))
	if err != nil || rec.Boot != bootID() || rec.foreign() {
		return false
	}
	proc, err := openProc()
	if err != nil {
		return true
	}
	defer proc.close()
	s, err := proc.stat(rec.Guard.pid) // of a version without that lock
	return err == nil && !s.ended() && s.start == rec.Guard.start
}

// undo undoes the entries of a journal, the last first. left are those that it could not,
// with an error, and the processes of another pid namespace, without.
func undo(rec *record, r *Recovered) (left []entry, failed error) {
	proc, err := openProc()
	if err != nil {
		return rec.entries, err
	}
	defer proc.close()
	extinct := rec.foreign() && proc.extinct(rec.PIDNS)
	for _, e := range slices.Backward(rec.entries) {
		switch {
		case e.kind == entryPID && extinct:
		case e.kind == entryPID && rec.foreign():
			left = append(left, e)
		default:
			if err := e.undo(proc, r); err != nil {
				failed = errors.Join(failed, err)
				left = append(left, e)
			}
		}
	}
	slices.Reverse(left)
	return left, failed
}

// undo undoes one entry.
func (e *entry) undo(proc *procfs, r *Recovered) error {
	switch e.kind {
	case entryPID:
		fds, s, err := proc.pin(e.pid)
		if vanished(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open process %d: %w", e.pid, err)
		}
		defer fds.close()
		if s.start != e.start {
			return nil
		}
		if err := unix.PidfdSendSignal(fds.pidfd, unix.SIGCONT, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("continue process %d: %w", e.pid, err)
		}
		r.Processes++
	case entryCgroup:
		c, err := openCgroup(e.path, nil, proc)
		if errors.Is(err, ErrNoTarget) {
			return nil
		}
		if err != nil {
			return err
		}
		defer c.close()
		if c.changed = c.inode == e.inode; c.changed {
			if err := c.thaw(); err != nil {
				return err
			}
			r.Cgroups++
		}
	case entryFS:
		thawed, err := undoFS(e)
		if err != nil {
			return err
		}
		if thawed {
			r.FileSystems++
		}
	}
	return nil
}

// shorten leaves in a journal what is still to be undone. The caller has its lock.
func (r *record) shorten(path string, left []entry) error {
	text, err := marshalRecord(r)
	if err != nil {
		return err
	}
	for _, e := range left {
		text = e.append(text)
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("shorten a journal: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("shorten a journal: %w", err)
	}
	return nil
}
