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
		return "nothing"
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
// directory; "" is [Dir]. What another boot or another pid namespace has left is not
// touched, and no process that has got the number of one that was frozen. A journal of
// another boot is removed, and one that is damaged as well, when all that could be
// understood of it has been done: the error says so.
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
	if err != nil {
		err = fmt.Errorf("%s was removed: %w", path, err)
	}
	sameBoot := rec.Boot == bootID()
	if sameBoot && rec.PIDNS != pidNamespace() {
		return nil, err
	}
	r := &Recovered{ID: rec.ID, Guard: int(rec.Guard.pid), Since: rec.Since}
	if sameBoot {
		if uerr := undo(rec.entries, r); uerr != nil {
			return r, errors.Join(err, uerr) // the journal stays
		}
	}
	_ = os.Remove(strings.TrimSuffix(path, journalEnd) + socketEnd)
	return r, errors.Join(err, os.Remove(path))
}

// guarded says whether the guard lives that has begun a journal, or is about to.
func guarded(f *os.File) bool {
	rec, err := readRecord(io.NewSectionReader(f, 0, maxJournal))
	if err != nil {
		return true // it has not been written yet
	}
	if rec.Boot != bootID() || rec.PIDNS != pidNamespace() {
		return true // as far as can be seen from here
	}
	proc, err := openProc()
	if err != nil {
		return true
	}
	defer proc.close()
	s, err := proc.stat(rec.Guard.pid)
	return err == nil && !s.ended() && s.start == rec.Guard.start
}

// undo undoes the entries of a journal, the last first.
func undo(entries []entry, r *Recovered) error {
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.close()
	var failed error
	for _, e := range slices.Backward(entries) {
		switch e.kind {
		case entryPID:
			fds, s, err := proc.pin(e.pid)
			if err != nil {
				if !vanished(err) {
					failed = errors.Join(failed, fmt.Errorf("open process %d: %w", e.pid, err))
				}
				continue
			}
			if s.start == e.start {
				if err := unix.PidfdSendSignal(fds.pidfd, unix.SIGCONT, nil, 0); err != nil && err != unix.ESRCH {
					failed = errors.Join(failed, fmt.Errorf("continue process %d: %w", e.pid, err))
				}
				r.Processes++
			}
			fds.close()
		case entryCgroup:
			c, err := openCgroup(e.path, nil, proc)
			if err != nil {
				if !errors.Is(err, ErrNoTarget) {
					failed = errors.Join(failed, err)
				}
				continue
			}
			if c.changed = c.inode == e.inode; c.changed {
				failed = errors.Join(failed, c.thaw())
				r.Cgroups++
			}
			c.close()
		case entryFS:
			thawed, err := undoFS(&e)
			failed = errors.Join(failed, err)
			if thawed {
				r.FileSystems++
			}
		}
	}
	return failed
}
