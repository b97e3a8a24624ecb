package checkpoint

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Asker is a process of a checkpoint that has asked for it itself, and waits for word at a
// pipe (pipe(2)) of its own. No connection to anybody outside could be in the checkpoint;
// the pipe is, and every process that is restarted from it has one of its own.
type Asker struct {
	PID  int `json:"pid"`
	Pipe int `json:"pipe"` // its descriptor, of either end
}

// What is written into the pipe: Running is for who ran on, Restored with a word that no
// other restart has is for who was restarted.
const (
	Running  = "running\n"
	Restored = "restored %s\n"
)

// Tell writes a line into the pipe. That it is no pipe is syscall.EPIPE: the asker does
// not wait any more.
func (a Asker) Tell(line string) error {
	path := fmt.Sprintf("/proc/%d/fd/%d", a.PID, a.Pipe)
	// Without a look at what it is, opening it might do something.
	look, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(look)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(look, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if fs.Type != unix.PIPEFS_MAGIC {
		return fmt.Errorf("%s is no pipe: %w", path, syscall.EPIPE)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", look), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(line))
	if err == nil && n < len(line) {
		err = unix.EAGAIN
	}
	if err != nil {
		return fmt.Errorf("write to %s: %w", path, err)
	}
	return nil
}

// tellRestored is for the asker among processes that have been restored.
func (o *restoreOrder) tellRestored() error {
	if o.Asker == nil || !slices.Contains(o.PIDs, o.Asker.PID) {
		return nil
	}
	err := o.Asker.Tell(fmt.Sprintf(Restored, rand.Text()))
	// It may have given up, or ended.
	if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("tell the job that it was restarted: %w", err)
	}
	return nil
}
