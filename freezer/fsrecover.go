package freezer

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// undoFS thaws a file system of a journal. It is true if this made the difference.
func undoFS(e *entry) (bool, error) {
	mounts, err := readMounts()
	if err != nil {
		return false, err
	}
	points := []string{e.path}
	for i := range mounts {
		points = append(points, mounts[i].point)
	}
	for _, point := range points {
		f, err := openMounted(mounts, point, e)
		if f == nil {
			if err != nil {
				return false, err
			}
			continue
		}
		defer f.close()
		err = f.ioctl(fithaw)
		if errors.Is(err, unix.EINVAL) {
			return false, nil
		}
		return err == nil, err
	}
	return thawUnmounted(e)
}

// openMounted opens a mount point if the file system of an entry is there, and on
// top.
func openMounted(mounts []mount, point string, e *entry) (*fileSystem, error) {
	for i := range mounts {
		m := &mounts[i]
		if m.point != point && point != e.path || m.dev != e.inode || m.describe() != e.source {
			continue
		}
		f, err := openFS(mounts, point)
		if errors.Is(err, ErrNotMounted) {
			return nil, nil
		}
		if err == nil && !f.is(*e) {
			f.close()
			return nil, nil
		}
		return f, err
	}
	return nil, nil
}

// thawUnmounted thaws a file system that is mounted nowhere that we can see: nobody
// has kept it from being unmounted once the guard was dead, and frozen it stays. It is
// mounted for a moment, where nobody sees it (fsmount(2)).
func thawUnmounted(e *entry) (bool, error) {
	fstype, source, _ := strings.Cut(e.source, " ")
	used, err := inUse(source, e.inode)
	if err != nil {
		return false, fmt.Errorf("thaw the %s of %s, which is not mounted here; mount it, or try again where it is mounted: %w", fstype, OneLine(source), err)
	}
	if !used {
		return false, nil
	}
	var failed error
	for _, flag := range []string{"", "ro"} { // the one that it was mounted with
		fd, err := mountNowhere(fstype, source, flag)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		err = freezeIoctl(fd, fithaw)
		_ = unix.Close(fd)
		if err == unix.EINVAL {
			return false, nil
		}
		return err == nil, err
	}
	return false, fmt.Errorf("thaw %s, which is not mounted here; mount it and try again: %w", source, failed)
}

// inUse says whether anybody has mounted a device: one that nobody uses has no file system
// that could be frozen. The error is for who cannot know it, as by a /dev of its own.
func inUse(source string, dev uint64) (bool, error) {
	var st unix.Stat_t
	err := unix.Stat(source, &st)
	onDevice := unix.Major(dev) != 0 // that of a btrfs has no number of its device
	switch {
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return false, errors.New("that is no device")
	case err == nil && onDevice && st.Rdev != dev:
		return false, fmt.Errorf("that is device %d:%d here, and it is on %d:%d",
			unix.Major(st.Rdev), unix.Minor(st.Rdev), unix.Major(dev), unix.Minor(dev))
	case err == unix.ENOENT && onDevice && removed(dev):
		return false, nil
	case err != nil:
		return false, err
	}
	fd, err := unix.Open(source, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return false, unix.Close(fd)
	case unix.EBUSY:
		return true, nil
	case unix.ENXIO, unix.ENODEV, unix.ENOMEDIUM: // it has gone
		return false, nil
	}
	return false, err
}

// removed says whether it is certain that the kernel has no such device any more.
func removed(dev uint64) bool {
	const all = "/sys/dev/block"
	var st unix.Stat_t
	return unix.Stat(all, &st) == nil &&
		unix.Stat(fmt.Sprintf("%s/%d:%d", all, unix.Major(dev), unix.Minor(dev)), &st) == unix.ENOENT
}

// mountNowhere returns the root directory of a mount that ends when it is closed.
func mountNowhere(fstype, source, flag string) (int, error) {
	if strings.Contains(fstype+source, "\x00") {
		return -1, fmt.Errorf("mount it: %w", unix.EINVAL)
	}
	fc, _, errno := unix.Syscall(unix.SYS_FSOPEN, uintptr(unsafe.Pointer(cString(fstype))), 1, 0)
	if errno != 0 {
		return -1, fmt.Errorf("fsopen: %w", errno)
	}
	defer unix.Close(int(fc))
	err := fsconfig(int(fc), fsconfigString, cString("source"), cString(source))
	if err == nil && flag != "" {
		err = fsconfig(int(fc), fsconfigFlag, cString(flag), nil)
	}
	if err == nil {
		err = fsconfig(int(fc), fsconfigCreate, nil, nil)
	}
	if err != nil {
		return -1, fmt.Errorf("mount it: %w", err)
	}
	mnt, _, errno := unix.Syscall(unix.SYS_FSMOUNT, fc, 1, 0)
	if errno != 0 {
		return -1, fmt.Errorf("mount it: %w", errno)
	}
	defer unix.Close(int(mnt))
	return unix.Openat(int(mnt), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
