package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// size of an image: well above what a node wants to keep free (64 MiB).
const size = 192 << 20

// filler is the file that fills a disk.
const filler = "filler"

// Disk is a file system in an image, mounted.
type Disk struct {
	Dir   string // where it is mounted
	image *os.File
	worn  bool // the image takes no writes any more
}

// New makes a file system and mounts it in dir. Its image is a file that has no name but
// that of the directory, for whoever looks at the loop device.
func New(dir, name string) (*Disk, error) {
	d := &Disk{Dir: filepath.Join(dir, name)}
	err := os.Mkdir(d.Dir, 0o700)
	if err == nil {
		d.image, err = newImage(d.Dir)
	}
	if err == nil {
		err = d.format()
	}
	if err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	return d, nil
}

// newImage makes an image with nothing in it. A memfd, and not a file of a tmpfs, as only
// those can be sealed: see WearOut.
func newImage(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	return f, f.Truncate(size)
}

// format makes a file system in the image and mounts it.
func (d *Disk) format() error {
	// Nothing is kept in reserve for root, who is us, and no work is left to a
	// kernel thread.
	cmd := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{d.image}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", cmd, err, bytes.TrimSpace(out))
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
	loop, err := attach(d.image)
	if err == nil {
		// The device lets go of the image when the file system is unmounted.
		defer loop.Close()
		err = unix.Mount(loop.Name(), d.Dir, "ext4", unix.MS_NOATIME, "")
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", d.Dir, err)
	}
	return nil
}

// attach makes a block device of an image: see loop(4).
func attach(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR, 0)
		if err == nil {
			c := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
			if err = unix.IoctlLoopConfigure(int(loop.Fd()), &c); err == nil {
				return loop, nil
			}
			_ = loop.Close()
		}
		// Others look for a free one at the same time, and its node may come a moment later.
		if again := errors.Is(err, unix.EBUSY) || errors.Is(err, os.ErrNotExist); !again || time.Now().After(end) {
			return nil, fmt.Errorf("make a loop device: %w", err)
		}
	}
}

// Close unmounts the disk.
func (d *Disk) Close() error {
	_ = d.Thaw() // it may not be frozen
	if err := d.unmount(); err != nil {
		return err
	}
	return d.image.Close()
}

// patience bounds what the kernel takes a moment for.
const patience = 5 * time.Second

func (d *Disk) unmount() error { return unmount(d.Dir) }

// unmount waits until nobody uses what is mounted any more.
func unmount(dir string) error {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
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

// WearOut makes the disk fail all writes from now on, and no reads. The file system takes
// what is written to its files, and fsync(2) tells, with EIO, that it is not on the disk; it
// is in the page cache still, and nowhere else. After that the file system is read-only, as
// it cannot write its journal either.
func (d *Disk) WearOut() error {
	// Nobody may write to it any more, not even the loop device: see F_SEAL_WRITE in fcntl(2).
	if _, err := unix.FcntlInt(d.image.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		return fmt.Errorf("wear %s out: %w", d.Dir, err)
	}
	d.worn = true
	return nil
}

// renew puts an image in the place of one that is worn out, with what that has.
func (d *Disk) renew() error {
	next, err := newImage(d.Dir)
	if err != nil {
		return err
	}
	for at := int64(0); ; {
		if at, err = unix.Seek(int(d.image.Fd()), at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			break // there is no more
		}
		end := at
		if err == nil {
			end, err = unix.Seek(int(d.image.Fd()), at, unix.SEEK_HOLE)
		}
		if err == nil {
			_, err = io.Copy(io.NewOffsetWriter(next, at), io.NewSectionReader(d.image, at, end-at))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("copy an image: %w", err), next.Close())
		}
		at = end
	}
	err = d.image.Close()
	d.image, d.worn = next, false
	return err
}

// PowerOn mounts the disk again; the kernel repairs it from its journal. It ends PowerOff
// and WearOut.
func (d *Disk) PowerOn() error {
	err := d.unmount()
	if err == nil && d.worn {
		err = d.renew()
	}
	if err == nil {
		err = d.mount()
	}
	if err != nil {
		return fmt.Errorf("repair %s: %w", d.Dir, err)
	}
	return nil
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
