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
	// A device that nobody uses has no file system that could be frozen.
	dev, err := unix.Open(source, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != unix.EBUSY {
		if err == nil {
			_ = unix.Close(dev)
		}
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
