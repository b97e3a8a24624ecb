package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The errors of file systems, those of freezefs(2) of Tru64 UNIX. The one for who is
// not root is ErrPermission.
var (
	// ErrNotSupported is returned when a file system cannot be frozen.
	ErrNotSupported = errors.New("the file system does not support freezing")
	// ErrNotMounted is returned when no file system is mounted at a path.
	ErrNotMounted = errors.New("not a mount point")
	// ErrNoMemory is returned when the kernel has no memory for it.
	ErrNoMemory = errors.New("not enough memory")
	// ErrAlreadyFrozen is returned when a file system is frozen already, by whomever.
	ErrAlreadyFrozen = errors.New("already frozen")
	// ErrNotFrozen is returned when there is nothing to thaw.
	ErrNotFrozen = errors.New("not frozen")
	// ErrOption is returned for flags and times that there are not.
	ErrOption = errors.New("option not supported")
	// ErrProtected is returned for the file systems that must not be frozen: those of
	// /, /usr, /var, /run and /tmp, of swap files, and of data that whoever is to thaw
	// them needs.
	ErrProtected = errors.New("it must not be frozen")
	// ErrUnknown is returned when nobody can tell whether a file system is frozen.
	ErrUnknown = errors.New("it cannot be known whether it is frozen")
)

// FSFlags say what [FS] does.
type FSFlags uint

// Exactly one of them is given.
const (
	FSQuery FSFlags = 1 << iota
	FSFreeze
	FSThaw
)

// maxSeconds bounds the seconds of a freeze: thirty years.
const maxSeconds = 1_000_000_000

// FS does what freezefs(2) of Tru64 UNIX does: it freezes or thaws the file system that
// is mounted at a directory, or says whether it is frozen. timeout, in seconds, is for
// FSFreeze alone: 0 means [DefaultFSTimeout], less than 0 for ever. See [FreezeFS],
// [ThawFS] and [QueryFS].
func FS(ctx context.Context, mount string, flags FSFlags, timeout int) (frozen bool, err error) {
	switch flags {
	case FSQuery:
		s, err := QueryFS(mount)
		return s.Frozen, err
	case FSFreeze:
		if timeout > maxSeconds {
			return false, fmt.Errorf("%w: a timeout of %d seconds", ErrOption, timeout)
		}
		_, err := FreezeFS(ctx, mount, time.Duration(max(timeout, -1))*time.Second)
		return err == nil, err
	case FSThaw:
		return false, ThawFS(ctx, mount)
	}
	return false, fmt.Errorf("%w: flags %#x", ErrOption, uint(flags))
}

// timeoutVariable sets the seconds of [DefaultFSTimeout] in the environment.
const timeoutVariable = "FREEZEFS_DEFAULT_TIMEOUT"

// DefaultFSTimeout is how long a file system stays frozen by [FreezeFS] when nothing
// is said: the seconds in the environment's FREEZEFS_DEFAULT_TIMEOUT, less than 0 for
// ever, else [DefaultTimeout].
func DefaultFSTimeout() (time.Duration, error) {
	text := os.Getenv(timeoutVariable)
	if text == "" {
		return DefaultTimeout, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n > maxSeconds {
		return 0, fmt.Errorf("%w: %s=%q is no number of seconds", ErrOption, timeoutVariable, text)
	}
	if n == 0 {
		return DefaultTimeout, nil
	}
	return time.Duration(max(n, -1)) * time.Second, nil
}

// FreezeFS freezes the file system that is mounted at a directory, with all its
// other mounts and subvolumes, and returns when it is frozen. It stays so, whoever
// ends, until [ThawFS] or for so long: 0 is [DefaultFSTimeout], less than 0 for ever.
// For a freeze that ends with its requester, and for several file systems as one, give
// [FileSystem] targets to a guard.
func FreezeFS(ctx context.Context, mount string, timeout time.Duration) (State, error) {
	if timeout == 0 {
		var err error
		if timeout, err = DefaultFSTimeout(); err != nil {
			return State{}, err
		}
	}
	o := Order{Targets: []Target{FileSystem(mount)}, Timeout: timeout, Detach: true}
	if err := o.Validate(); err != nil {
		return State{}, err
	}
	g, err := Start(ctx, "")
	if err != nil {
		return State{}, err
	}
	defer g.Close()
	if _, err := g.Freeze(ctx, o); err != nil {
		return State{}, err
	}
	return g.State()
}

// ThawFS thaws the file system that is mounted at a directory. If a guard holds it, the
// guard ends, and thaws all that it has frozen with it; what a killed guard has left is
// thawed as by [Recover]; and so is what somebody else has frozen, as with fsfreeze(8).
// The error is [ErrNotFrozen] as well if the guard had frozen it, or others with it, and
// somebody else has thawed one of them before; all are thawed then.
func ThawFS(ctx context.Context, mount string) error {
	if os.Geteuid() != 0 {
		return ErrPermission
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	f, err := openFS(mounts, mount)
	if errors.Is(err, ErrNotMounted) {
		return fmt.Errorf("%w%s", err, heldOnce(mount))
	}
	if err != nil {
		return err
	}
	defer f.close()
	ours, err := f.dismiss(ctx)
	if err != nil {
		return err
	}
	err = f.ioctl(fithaw)
	if errors.Is(err, unix.EINVAL) {
		if err = nil; !ours {
			err = fmt.Errorf("%s: %w", OneLine(mount), ErrNotFrozen)
		}
	}
	return err
}

// dismiss ends all guards that hold a file system, and does the work of those that
// were killed. It says whether there was one; one that has ended before, without being
// asked, is none.
func (f *fileSystem) dismiss(ctx context.Context) (found bool, err error) {
	for until := time.Now().Add(guardPatience); ; time.Sleep(lockPause) {
		ours, err := holders(Dir(), f)
		if err != nil || len(ours) == 0 {
			return found, err
		}
		if time.Now().After(until) {
			return true, fmt.Errorf("guard %d does not let go of %s", ours[0].Guard.pid, OneLine(f.path))
		}
		if slices.ContainsFunc(ours, func(h holder) bool { return h.lost }) {
			if _, err := Recover(""); err != nil {
				return true, err
			}
			found = true
			continue
		}
		g, err := Adopt("", ours[0].ID)
		switch {
		case errors.Is(err, ErrThawed), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
			continue // it has ended meanwhile, by itself
		case err != nil:
			return true, err
		}
		if err := g.dismiss(ctx); err != nil {
			return true, err
		}
		found = true
	}
}

// dismiss thaws, whoever is faster. The guard was adopted.
func (g *Guard) dismiss(ctx context.Context) error {
	stop := context.AfterFunc(ctx, g.Close)
	err := g.Thaw()
	switch {
	case !stop():
		return context.Cause(ctx)
	case errors.Is(err, ErrBroken):
		return fmt.Errorf("%w: %w", ErrNotFrozen, err)
	case errors.Is(err, ErrThawed), errors.Is(err, ErrDeadline), errors.Is(err, ErrGuardLost):
		return nil
	}
	return err
}

// heldOnce is a word on what a guard holds of what was mounted at a path before; empty if
// nothing.
func heldOnce(path string) string {
	found, err := records(Dir())
	if err != nil {
		return ""
	}
	for i := range found {
		if slices.ContainsFunc(found[i].entries, func(e entry) bool { return e.kind == entryFS && e.path == path }) {
			return fmt.Sprintf("; guard %d holds what was mounted there: thawfs --id %s thaws it", found[i].Guard.pid, found[i].ID)
		}
	}
	return ""
}

// ThawID ends the freeze that has an ID in its [State], and does the work of its guard if
// that was killed. So it thaws a file system that ThawFS cannot, as it is mounted nowhere any
// more (umount2(2) with MNT_DETACH). The error is [ErrNotFrozen] if there is no such freeze.
func ThawID(ctx context.Context, id string) error {
	if os.Geteuid() != 0 {
		return ErrPermission
	}
	g, err := Adopt("", id)
	if err == nil {
		return g.dismiss(ctx)
	}
	if !errors.Is(err, ErrThawed) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	done, err := Recover("")
	if slices.ContainsFunc(done, func(r Recovered) bool { return r.ID == id }) || err != nil {
		return err
	}
	return fmt.Errorf("%w: no guard has a freeze %s", ErrNotFrozen, OneLine(id))
}

// FSState says whether a file system is frozen, and who has done it.
type FSState struct {
	Mount  string `json:"mount"`
	Type   string `json:"type"`
	Source string `json:"source"`
	Frozen bool   `json:"frozen"`
	// By is the freeze of a guard. Without it somebody else has frozen it; and if it is
	// not frozen in spite of it, somebody else has thawed it.
	By *State `json:"by,omitempty"`
	// Lost says that this guard was killed: [Recover] and [ThawFS] thaw.
	Lost bool `json:"lost,omitempty"`
}

// QueryFS says whether the file system is frozen that is mounted at a directory, and
// changes nothing, unless a guard that somebody has stopped is overdue: it is continued to be
// asked, and thaws. Of ext2, ext3, ext4, xfs and btrfs the kernel tells; of others it is
// known only if a guard has frozen it, and the error is [ErrUnknown] if none has, or
// [ErrNotSupported] if nobody can.
func QueryFS(mount string) (FSState, error) {
	if os.Geteuid() != 0 {
		return FSState{}, ErrPermission
	}
	mounts, err := readMounts()
	if err != nil {
		return FSState{}, err
	}
	f, err := openFS(mounts, mount)
	if err != nil {
		return FSState{}, err
	}
	defer f.close()
	return f.query(Dir())
}

func (f *fileSystem) query(dir string) (FSState, error) {
	s := FSState{Mount: f.path, Type: f.fstype, Source: f.source}
	ours, err := holders(dir, f)
	if err != nil {
		return s, err
	}
	if len(ours) > 0 {
		by := ours[0].state()
		s.By, s.Lost, s.Frozen = &by, ours[0].lost, true
		// The kernel would let us wait for a freeze that has begun.
		if !s.Lost && (!f.tells() || freezing(dir, s.By.ID)) {
			return s, nil
		}
	}
	frozen, err := f.probe()
	switch {
	case errors.Is(err, ErrUnknown) && s.Frozen:
	case err != nil:
		return s, fmt.Errorf("%s: %w", OneLine(f.path), err)
	case !frozen:
		s.Frozen = false
		// A guard that is still there has not thawed it.
		if ours, err = holders(dir, f); err != nil || s.Lost || len(ours) == 0 {
			s.By, s.Lost = nil, false
		}
	default:
		s.Frozen = true
	}
	return s, nil
}

// freezing says whether a guard may be about to freeze.
func freezing(dir, id string) bool {
	g, err := Adopt(dir, id)
	if err == nil {
		_, err = g.State()
		g.Close()
	}
	gone := errors.Is(err, ErrThawed) || errors.Is(err, ErrDeadline) || errors.Is(err, ErrGuardLost) || errors.Is(err, ErrBroken) ||
		errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
	return err != nil && !gone
}

// SurveyFS says in which order the file systems of an order would be frozen, and in
// what state they are, and changes nothing. The error is the one that the freeze
// would have, as far as it is known before.
func SurveyFS(o Order) ([]FSState, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, ErrPermission
	}
	h := fsHolding{targets: o.Targets}
	defer h.release()
	if err := h.open(&host{order: &o}); err != nil {
		return nil, err
	}
	var all []FSState
	for _, f := range h.systems {
		s, err := f.query(Dir())
		switch {
		case errors.Is(err, ErrUnknown):
		case err != nil:
			return nil, err
		case s.By != nil:
			return nil, taken(f.path, s.By.Guard, !s.Frozen)
		case s.Frozen:
			return nil, fmt.Errorf("%s: %w", OneLine(f.path), ErrAlreadyFrozen)
		}
		all = append(all, s)
	}
	return all, nil
}
