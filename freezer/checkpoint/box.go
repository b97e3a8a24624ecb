package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// box is a private directory for images and for a file in the making. Whoever may need
// it has the lock file open and locked (flock(2)); an unlocked one is what killed
// processes have left.
//
// It may be in a directory of another user, who can give it another name and put something
// else in its place: a program that CRIU would run, or a link to where root would write. So its
// name is used to make and to remove it, and all else goes by a descriptor of it.
type box struct {
	dir  string   // its name
	at   *os.File // it
	way  string   // the path by which what is in it is reached
	lock *os.File
	// owner is the user of what we make there, who may be nobody on NFS.
	owner uint32
}

const (
	boxPattern = ".checkpoint-*"
	boxLock    = "lock"
)

// newBox makes a box in a directory, and removes what others have left there.
func newBox(in string) (*box, error) {
	in, err := filepath.Abs(in) // CRIU changes its directory
	if err != nil {
		return nil, err
	}
	for range 3 {
		dir, err := os.MkdirTemp(in, boxPattern)
		if err != nil {
			return nil, err
		}
		b, err := openBox(dir)
		if err == nil {
			sweep(in, b.owner)
			return b, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EAGAIN) { // which is: swept before it was locked
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: directories there vanish", in)
}

// errNotOurBox says that something else has the name of a directory that we have made.
var errNotOurBox = fmt.Errorf("somebody has put something else in its place: %w", syscall.EPERM)

// openBox makes a box of an empty directory.
func openBox(dir string) (*box, error) {
	b := &box{dir: dir}
	if err := b.fill(); err != nil {
		// It may not be ours, so nothing else that is there is removed.
		if b.lock != nil {
			_ = os.Remove(b.path(boxLock))
		}
		_ = unix.Rmdir(dir)
		closeAll(b.at, b.lock)
		return nil, err
	}
	return b, nil
}

// fill makes sure of the box, and makes what every one has.
func (b *box) fill() (err error) {
	if err := b.open(); err != nil {
		return err
	}
	if b.lock, err = os.OpenFile(b.path(boxLock), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if err = unix.Flock(int(b.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return err
	}
	// What we make is ours, and so the directory has to be.
	var ours, theirs unix.Stat_t
	if err = errors.Join(unix.Fstat(int(b.lock.Fd()), &ours), unix.Fstat(int(b.at.Fd()), &theirs)); err != nil {
		return err
	}
	names, err := b.at.Readdirnames(-1)
	if err != nil {
		return err
	}
	if ours.Uid != theirs.Uid || theirs.Mode&0o022 != 0 || len(names) > 1 {
		return &os.PathError{Op: "use", Path: b.dir, Err: errNotOurBox}
	}
	b.owner = ours.Uid
	return os.Mkdir(b.images(), 0o700)
}

// open opens what has the name of the box.
func (b *box) open() (err error) {
	if b.at, err = os.OpenFile(b.dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err == nil {
		b.way = fmt.Sprint(boxWay(), b.at.Fd())
	}
	return err
}

// boxWay begins the path of a box. CRIU takes it too; if we end, it finds nothing there and
// gives up.
func boxWay() string { return fmt.Sprintf("/proc/%d/fd/", os.Getpid()) }

func (b *box) path(name string) string { return filepath.Join(b.way, name) }
func (b *box) images() string          { return b.path("images") }

// hasRoom says whether there is room for so many bytes on the file system of a directory. One
// that is not there has none.
func hasRoom(dir string, size uint64) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Bavail*uint64(st.Bsize) >= size
}

// room is an error if no more can be written to the box.
func (b *box) room() error {
	return os.WriteFile(b.path("room"), make([]byte, 4096), 0o600)
}

// remove removes what is in the box, wherever it is now, and then its name.
func (b *box) remove() {
	if b.at != nil {
		_, _ = b.at.Seek(0, 0)
		names, _ := b.at.Readdirnames(-1)
		for _, name := range names {
			_ = os.RemoveAll(fmt.Sprintf("/proc/self/fd/%d/%s", b.at.Fd(), name))
		}
	}
	_ = unix.Rmdir(b.dir)
	closeAll(b.at, b.lock)
}

// Sweep removes the boxes in a directory that nobody has, which killed checkpoints and restarts
// have left. The next one there does so as well. Errors are for those who look at the directory.
func Sweep(in string) { sweep(in, uint32(os.Geteuid())) }

// sweep takes for a box only what its owner has made as one: nobody else's directory, and none of
// theirs that somebody else has given such a name, and a lock of his own.
func sweep(in string, owner uint32) {
	left, _ := filepath.Glob(filepath.Join(escapeGlob(in), boxPattern))
	for _, dir := range left {
		b := &box{dir: dir}
		if b.open() != nil {
			continue
		}
		var err error
		b.lock, err = os.OpenFile(b.path(boxLock), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		switch {
		case err == nil && isPrivate(b.at, owner) && isPrivate(b.lock, owner) && unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil:
			b.remove()
			continue
		case errors.Is(err, os.ErrNotExist):
			_ = unix.Rmdir(dir) // only if it is empty
		}
		closeAll(b.at, b.lock)
	}
}

// isPrivate says whether a directory, or an empty file, is one user's, and nobody else's to use.
func isPrivate(f *os.File, owner uint32) bool {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Uid != owner || st.Mode&0o077 != 0 {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0
}

func escapeGlob(path string) string {
	var out []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, path[i])
	}
	return string(out)
}
