package freezer

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From the kernel's include/uapi/linux/mount.h.
const (
	fspickEmptyPath   = 8
	fsconfigFlag      = 0
	fsconfigString    = 1
	fsconfigCreate    = 6
	fsconfigConfigure = 7
)

// probe asks the kernel whether a file system is frozen. It does not tell; but a
// change of the options is refused with EBUSY when it is, before anything is looked at.
// So the change of nothing is asked for (fspick(2), fsconfig(2)).
func (f *fileSystem) probe() (bool, error) {
	if !f.tells() {
		if !onDevice(f.fstype) {
			return false, fmt.Errorf("%w: %s", ErrNotSupported, f.fstype)
		}
		return false, fmt.Errorf("%w: the kernel does not tell of %s", ErrUnknown, f.fstype)
	}
	empty := []byte{0}
	pick, _, errno := unix.Syscall(unix.SYS_FSPICK, uintptr(f.fd), uintptr(unsafe.Pointer(&empty[0])), fspickEmptyPath|1)
	if errno != 0 {
		return false, fmt.Errorf("ask for its options: %w", errno)
	}
	defer unix.Close(int(pick))
	if f.fstype == "xfs" {
		// For xfs nothing is not nothing: inode32 would become inode64. A file system
		// that may be written to refuses norecovery, so nothing is changed; one that
		// may not gets what it has.
		options := []string{"norecovery"}
		if f.option("inode32") {
			options = append(options, "inode32")
		}
		for _, o := range options {
			if err := fsconfig(int(pick), fsconfigFlag, o, ""); err != nil {
				return false, fmt.Errorf("ask for its options: %w", err)
			}
		}
	}
	err := fsconfig(int(pick), fsconfigConfigure, "", "")
	switch {
	case err == unix.EBUSY:
		return true, nil
	case err == nil, err == unix.EINVAL, err == unix.EROFS:
		// The options are looked at after that. Besides xfs, a file system refuses its
		// own when an error has made it read-only.
		return false, nil
	}
	return false, fmt.Errorf("ask whether it (%s) is frozen: %w", f.fstype, err)
}

// tells says whether the kernel says of this type what is frozen, and nothing is changed
// by the question.
func (f *fileSystem) tells() bool {
	switch f.fstype {
	case "ext2", "ext3", "ext4", "xfs", "btrfs":
		return true
	}
	return false
}

func fsconfig(fd int, command uintptr, key, value string) error {
	var k, v unsafe.Pointer
	if key != "" {
		p, err := unix.BytePtrFromString(key)
		if err != nil {
			return err
		}
		k = unsafe.Pointer(p)
	}
	if value != "" {
		p, err := unix.BytePtrFromString(value)
		if err != nil {
			return err
		}
		v = unsafe.Pointer(p)
	}
	_, _, errno := unix.Syscall6(unix.SYS_FSCONFIG, uintptr(fd), command, uintptr(k), uintptr(v), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// onDevice says whether file systems of a type are on devices (proc_filesystems(5)),
// or at least can be frozen as if they were.
func onDevice(fstype string) bool {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return true
	}
	for line := range bytes.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "nodev\t"); ok && name == fstype {
			return false
		}
	}
	return true
}
