package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// box is a private directory for images and for a file in the making. Whoever may need
// it has the lock file open and locked (flock(2)); an unlocked one is what killed
// processes have left.
type box struct {
	dir  string
	lock *os.File
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
	sweep(in)
	for range 3 {
		dir, err := os.MkdirTemp(in, boxPattern)
		if err != nil {
			return nil, err
		}
		b := &box{dir: dir}
		if b.lock, err = os.OpenFile(b.path(boxLock), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			err = unix.Flock(int(b.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		}
		if err == nil {
			err = os.Mkdir(b.images(), 0o700)
		}
		if err == nil {
			return b, nil
		}
		b.remove()
		if !errors.Is(err, os.ErrNotExist) && err != unix.EAGAIN { // someone swept it before it was locked
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: directories there vanish", in)
}

func (b *box) path(name string) string { return filepath.Join(b.dir, name) }
func (b *box) images() string          { return b.path("images") }

// room is an error if no more can be written to the box.
func (b *box) room() error {
	return os.WriteFile(b.path("room"), make([]byte, 4096), 0o600)
}

func (b *box) remove() {
	_ = os.RemoveAll(b.dir)
	if b.lock != nil {
		_ = b.lock.Close()
	}
}

// Sweep removes what killed checkpoints and restarts have left in a directory. The next one
// there does so as well.
func Sweep(dir string) { sweep(dir) }

// sweep removes the boxes in a directory that nobody has. Errors are for those who
// look at the directory.
func sweep(in string) {
	left, _ := filepath.Glob(filepath.Join(escapeGlob(in), boxPattern))
	for _, dir := range left {
		f, err := os.OpenFile(filepath.Join(dir, boxLock), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				_ = os.Remove(dir) // only if it is empty
			}
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = f.Close()
	}
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
