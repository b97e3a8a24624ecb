package freezer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// From the kernel's include/uapi/linux/fs.h, where the argument is called int and is
// not looked at.
const (
	fifreeze = 0xC0045877
	fithaw   = 0xC0045878
)

// fileSystem is a file system, whatever number of mounts it has, by one of them.
type fileSystem struct {
	*mount
	path   string      // as it was asked for
	age    int         // of its first mount
	fd     int         // of the directory; as long as it is open nobody can unmount it
	frozen atomic.Bool // by us, and to be undone
	lost   atomic.Bool // thawed by somebody else
	asking sync.Mutex  // somebody probes, or closes
}

// openFS opens what is mounted at a path.
func openFS(mounts []mount, path string) (*fileSystem, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP || err == unix.ENAMETOOLONG:
		return nil, fmt.Errorf("%s: %w: %w", OneLine(path), ErrNotMounted, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", OneLine(path), err)
	}
	f := &fileSystem{path: path, fd: fd}
	root := false
	f.mount, f.age, root, err = find(mounts, fd)
	if err == nil && !root {
		err = ErrNotMounted
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("%s: %w", OneLine(path), err)
	}
	return f, nil
}

// OneLine quotes a name that would do things to a terminal, or to a log; all others it
// returns as they are.
func OneLine(name string) string {
	if quoted := strconv.QuoteToGraphic(name); quoted != `"`+name+`"` {
		return quoted
	}
	return name
}

func (f *fileSystem) String() string { return "file system " + OneLine(f.path) }

func (f *fileSystem) close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}

// ioctl freezes or thaws. It may take as long as the disk.
func (f *fileSystem) ioctl(request uint) error { return f.failed(freezeIoctl(f.fd, request)) }

// failed gives the kernel's errors the names of freezefs(2).
func (f *fileSystem) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case err == unix.EBUSY:
		err = ErrAlreadyFrozen
	case err == unix.EOPNOTSUPP || err == unix.ENOTTY:
		err = fmt.Errorf("%w: %s", ErrNotSupported, f.fstype)
	case err == unix.ENOMEM:
		err = ErrNoMemory
	case err == unix.EPERM:
		err = ErrPermission
	}
	return fmt.Errorf("%s: %w", OneLine(f.path), err)
}

func freezeIoctl(fd int, request uint) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

func (f *fileSystem) entry() entry {
	return entry{kind: entryFS, inode: f.dev, path: f.path, source: f.describe()}
}

// fsHolding holds all targets of an order that are file systems.
type fsHolding struct {
	targets []Target
	systems []*fileSystem // in the order in which they are frozen
	thawing atomic.Bool   // by us
}

func (h *fsHolding) open(at *host) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	never, err := protected(mounts, at.order.Protect)
	if err != nil {
		return err
	}
	for _, t := range h.targets {
		if t.Kind != KindFileSystem {
			continue
		}
		f, err := openFS(mounts, t.Path)
		if err != nil {
			return err
		}
		why, vital := never[f.dev]
		held := slices.IndexFunc(at.others, func(r record) bool { return slices.ContainsFunc(r.entries, f.is) })
		twice := slices.ContainsFunc(h.systems, func(s *fileSystem) bool { return s.dev == f.dev })
		thawed := false
		if held >= 0 { // no other guard is freezing now
			frozen, err := f.probe()
			thawed = err == nil && !frozen
		}
		if vital || held >= 0 || twice {
			f.close()
		}
		switch {
		case vital:
			return fmt.Errorf("%s: %w: %s is on it", OneLine(t.Path), ErrProtected, OneLine(why))
		case held >= 0:
			return taken(f.path, int(at.others[held].Guard.pid), thawed)
		case !twice:
			h.systems = append(h.systems, f)
		}
	}
	// What is kept in a file system, as an image, is mounted after it, and writes to it
	// when it is frozen.
	slices.SortStableFunc(h.systems, func(a, b *fileSystem) int { return cmp.Compare(b.age, a.age) })
	return nil
}

// taken is the error for a file system that a guard has frozen. It is not ours to freeze
// though somebody else has thawed it, as long as that guard does not know of it.
func taken(path string, guard int, thawed bool) error {
	err := fmt.Errorf("%s: %w by guard %d", OneLine(path), ErrAlreadyFrozen, guard)
	if thawed {
		err = fmt.Errorf("%w, and thawed by somebody since: try again in a second, when the guard has noticed, or run thawfs first, which ends it", err)
	}
	return err
}

// ready writes to disk what is there to be written, so that everybody waits for less
// when it is frozen.
func (h *fsHolding) ready(at *host) error {
	for _, f := range h.systems {
		s, err := f.query(at.dir)
		switch {
		case errors.Is(err, ErrUnknown):
		case err != nil:
			return err
		case s.By != nil:
			return taken(f.path, s.By.Guard, !s.Frozen)
		case s.Frozen:
			return fmt.Errorf("%s: %w", OneLine(f.path), ErrAlreadyFrozen)
		}
		if err := unix.Syncfs(f.fd); err != nil {
			return fmt.Errorf("write %s to disk: %w", OneLine(f.path), err)
		}
	}
	return nil
}

// is says whether an entry is for this file system.
func (f *fileSystem) is(e entry) bool {
	return e.kind == entryFS && e.inode == f.dev && e.source == f.describe()
}

func (h *fsHolding) freeze(ctx context.Context, note func(...entry) error, r *Report) error {
	// What is written now is not written while everybody waits.
	for _, f := range h.systems {
		done := make(chan error, 1)
		fd := f.fd
		go func() { done <- unix.Syncfs(fd) }()
		select {
		case <-ctx.Done():
			return context.Cause(ctx) // the guard ends, and with it the goroutine
		case err := <-done:
			if err != nil {
				return fmt.Errorf("write %s to disk: %w", OneLine(f.path), err)
			}
		}
	}
	for _, f := range h.systems {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := note(f.entry()); err != nil {
			return err
		}
		// This cannot be broken off, and until it has ended FITHAW is refused by the
		// kernel; so there is nothing to do about a deadline but to wait for it.
		// Everybody who waits for the file system waits for the same disk.
		if err := f.ioctl(fifreeze); err != nil {
			return err
		}
		f.frozen.Store(true)
		r.FileSystems = append(r.FileSystems, f.path)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// A thaw must not be killed on btrfs: it reads its super block again, gives up when a
// SIGKILL is pending, and takes that for damage: the file system is thawed, but
// read-only until it is mounted anew. Nobody kills a guard that thaws without meaning
// it.
//
// thaw does not wait for a probe that is on its way: the kernel may let that wait until
// the thaw.
func (h *fsHolding) thaw() error {
	h.thawing.Store(true)
	var failed error
	for _, f := range slices.Backward(h.systems) {
		if !f.frozen.Load() {
			continue
		}
		switch err := f.ioctl(fithaw); {
		case errors.Is(err, unix.EINVAL):
			f.lost.Store(true)
		case err != nil:
			failed = errors.Join(failed, err)
			continue
		}
		f.frozen.Store(false)
	}
	return failed
}

// probePause is the time between two looks at what is frozen. Who thaws it and freezes it
// again between two of them is not noticed.
const probePause = time.Second

// await asks, as the kernel tells nobody of a thaw. What somebody else has thawed is not
// ours any more: a freeze that comes after that is somebody else's, and theirs to thaw.
func (h *fsHolding) await() string {
	var known []*fileSystem
	for _, f := range h.systems {
		if f.tells() {
			known = append(known, f)
		}
	}
	for len(known) > 0 {
		time.Sleep(probePause)
		for _, f := range known {
			frozen, err := f.look()
			switch {
			case h.thawing.Load():
				return ""
			case err == nil && !frozen:
				f.lost.Store(true)
				f.frozen.Store(false)
			}
		}
		if lost := h.lost(); lost != "" {
			return lost
		}
	}
	return ""
}

// lost names what somebody else has thawed, as far as is known.
func (h *fsHolding) lost() string {
	var names []string
	for _, f := range h.systems {
		if f.lost.Load() {
			names = append(names, f.String())
		}
	}
	return strings.Join(names, ", ")
}

// look is a probe that a close waits for.
func (f *fileSystem) look() (frozen bool, err error) {
	f.asking.Lock()
	defer f.asking.Unlock()
	if f.fd < 0 {
		return false, unix.EBADF
	}
	return f.probe()
}

// finish closes the directories: whoever is told of the thaw may want to unmount them.
func (h *fsHolding) finish() string {
	for _, f := range h.systems {
		f.asking.Lock()
		f.close()
		f.asking.Unlock()
	}
	return h.lost()
}

func (h *fsHolding) release() {
	for _, f := range h.systems {
		f.close()
	}
}

// holder is a journal that has a file system.
type holder struct {
	record
	lost bool // its guard was killed
}

// holders finds the journals in a directory that have a file system.
func holders(dir string, f *fileSystem) ([]holder, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+journalEnd))
	if err != nil {
		return nil, err
	}
	var found []holder
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			continue // it has been removed
		}
		// A guard that lives has the lock, and one that asks must not have it alone:
		// somebody may be asking for it to recover.
		err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		rec, rerr := readRecord(file)
		if (rerr == nil || errors.Is(rerr, errJournal)) && rec.Boot == bootID() && slices.ContainsFunc(rec.entries, f.is) {
			rec.locate(file)
			found = append(found, holder{rec, err == nil})
		}
		_ = file.Close()
	}
	return found, nil
}
