package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// size of an image: well above what a node wants to keep free (64 MiB).
const size = 192 << 20

// underSize is that of the tmpfs below an image: room for all of it.
const underSize = size + size/8

// filler is the file that fills a disk.
const filler = "filler"

// Disk is a file system in an image, mounted.
type Disk struct {
	Dir   string // where it is mounted
	under string // a tmpfs that holds the image and nothing else
	image string
}

// New makes a file system in dir and mounts it.
func New(dir, name string) (*Disk, error) {
	under := filepath.Join(dir, name+".under")
	d := &Disk{Dir: filepath.Join(dir, name), under: under, image: filepath.Join(under, name+".img")}
	err := errors.Join(os.Mkdir(d.Dir, 0o700), os.Mkdir(under, 0o700))
	if err == nil {
		err = unix.Mount("jx", under, "tmpfs", 0, fmt.Sprint("size=", underSize))
	}
	if err == nil {
		if err = d.make(); err != nil {
			err = errors.Join(err, unix.Unmount(under, 0))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	return d, nil
}

// make makes the image, with a file system in it.
func (d *Disk) make() error {
	f, err := os.Create(d.image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	return d.format()
}

// format makes a file system in the image and mounts it.
func (d *Disk) format() error {
	// Nothing is kept in reserve for root, who is us, and no work is left to a
	// kernel thread.
	err := command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.image)
	if err != nil {
		return err
	}
	return d.mount()
}

// Wipe puts an empty file system in the place of this one, which nobody may use.
func (d *Disk) Wipe() error {
	err := d.unmount()
	if err == nil {
		err = d.format()
	}
	if err != nil {
		return fmt.Errorf("wipe %s: %w", d.Dir, err)
	}
	return nil
}

func (d *Disk) mount() error {
	return command("mount", "-o", "loop,noatime", d.image, d.Dir)
}

// Close unmounts the disk.
func (d *Disk) Close() error {
	_ = d.Thaw() // it may not be frozen
	if err := d.unmount(); err != nil {
		return err
	}
	return unmount(d.under) // the loop device lets go of the image a moment later
}

func (d *Disk) unmount() error { return unmount(d.Dir) }

// unmount waits until nobody uses what is mounted any more.
func unmount(dir string) error {
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// Numbers of ioctl_xfs_goingdown(2), which ext4 has too, and ioctl_fsfreeze(2).
const (
	ioctlGoingDown = 0x8004587d
	noLogFlush     = 2
	ioctlFreeze    = 0xc0045877
	ioctlThaw      = 0xc0045878
)

// PowerOff makes the file system forget what is not on its disk: every call on it
// fails from now on, with EIO. For a loss of power whoever uses it must be stopped
// before, so that it sees nothing of that; for a disk that breaks it runs on. Either
// way it must be dead before PowerOn.
func (d *Disk) PowerOff() error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return fmt.Errorf("power off %s: %w", d.Dir, err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), ioctlGoingDown, noLogFlush); err != nil {
		return fmt.Errorf("power off %s: %w", d.Dir, err)
	}
	return nil
}

// WearOut lets the disk fail at blocks that nothing was ever written to: their image gets
// no room any more. The file system takes such writes, and only fsync(2) tells, once,
// with EIO or, as the image has no room, ENOSPC; what was written is in the page cache
// still, and nowhere else.
func (d *Disk) WearOut() error {
	var s unix.Statfs_t
	err := unix.Statfs(d.under, &s)
	if err == nil {
		err = d.room(int64(s.Blocks-s.Bfree) * s.Bsize)
	}
	if err != nil {
		return fmt.Errorf("wear %s out: %w", d.Dir, err)
	}
	return nil
}

// room sets how much room the image has.
func (d *Disk) room(bytes int64) error {
	return unix.Mount("jx", d.under, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", bytes))
}

// PowerOn mounts the disk again; the kernel repairs it from its journal. It ends PowerOff
// and WearOut.
func (d *Disk) PowerOn() error {
	if err := d.room(underSize); err != nil {
		return fmt.Errorf("repair %s: %w", d.Dir, err)
	}
	if err := d.unmount(); err != nil {
		return err
	}
	return d.mount()
}

// Freeze makes all writes wait until Thaw.
func (d *Disk) Freeze() error { return d.freezing(ioctlFreeze) }

// Thaw ends Freeze. It is an error if the disk is not frozen.
func (d *Disk) Thaw() error { return d.freezing(ioctlThaw) }

func (d *Disk) freezing(request uint) error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}

// Slow makes the disk pause for so long, again and again, with nothing in between: who
// waits at the end of a pause goes on, and whoever comes next has to wait for the end of
// the next one. So every write that is forced to the disk waits, however fast the disk
// is. The function returned ends it, and says how many pauses there were.
func (d *Disk) Slow(pause time.Duration) (end func() (pauses int, err error), err error) {
	if err := d.Freeze(); err != nil {
		return nil, fmt.Errorf("slow %s down: %w", d.Dir, err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	n := 1
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
			case <-time.After(pause):
			}
			if err = d.Thaw(); err != nil {
				return
			}
			select {
			case <-stop:
				return
			default:
			}
			if err = d.Freeze(); err != nil {
				return
			}
			n++
		}
	}()
	return func() (int, error) {
		close(stop)
		<-done
		if err != nil {
			return n, fmt.Errorf("slow %s down: %w", d.Dir, err)
		}
		return n, nil
	}, nil
}

// Fill leaves no space but so many bytes.
func (d *Disk) Fill(left int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		return fmt.Errorf("fill %s: %w", d.Dir, err)
	}
	n := int64(s.Bavail)*s.Bsize - left
	if n <= 0 {
		return nil
	}
	f, err := os.Create(filepath.Join(d.Dir, filler))
	if err != nil {
		return fmt.Errorf("fill %s: %w", d.Dir, err)
	}
	defer f.Close()
	// The file system needs some blocks for its own notes: so take what it gives.
	for off, chunk := int64(0), n; chunk >= s.Bsize && off < n; {
		chunk = min(chunk, n-off)
		err := unix.Fallocate(int(f.Fd()), 0, off, chunk)
		switch {
		case err == nil:
			off += chunk
		case errors.Is(err, unix.ENOSPC):
			chunk /= 2
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("fill %s: %w", d.Dir, err)
		}
	}
	return nil
}

// Empty ends Fill, for good: a loss of power does not bring the filler back.
func (d *Disk) Empty() error {
	err := os.Remove(filepath.Join(d.Dir, filler))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	f, openErr := os.Open(d.Dir)
	if err := errors.Join(err, openErr); err != nil {
		return fmt.Errorf("empty %s: %w", d.Dir, err)
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
