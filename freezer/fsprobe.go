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

// Words for the kernel: a guard that asks again and again makes none anew.
var (
	emptyPath  = cString("")
	norecovery = cString("norecovery")
	inode32    = cString("inode32")
)

// cString is for names that have no zero in them.
func cString(s string) *byte { return unsafe.StringData(s + "\x00") }

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
	pick, _, errno := unix.Syscall(unix.SYS_FSPICK, uintptr(f.fd), uintptr(unsafe.Pointer(emptyPath)), fspickEmptyPath|1)
	if errno != 0 {
		return false, fmt.Errorf("ask for its options: %w", errno)
	}
	defer unix.Close(int(pick))
	if f.fstype == "xfs" {
		// For xfs nothing is not nothing: inode32 would become inode64. A file system
		// that may be written to refuses norecovery, so nothing is changed; one that
		// may not gets what it has.
		err := fsconfig(int(pick), fsconfigFlag, norecovery, nil)
		if err == nil && f.option("inode32") {
			err = fsconfig(int(pick), fsconfigFlag, inode32, nil)
		}
		if err != nil {
			return false, fmt.Errorf("ask for its options: %w", err)
		}
	}
	err := fsconfig(int(pick), fsconfigConfigure, nil, nil)
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

func fsconfig(fd int, command uintptr, key, value *byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_FSCONFIG, uintptr(fd), command, uintptr(unsafe.Pointer(key)), uintptr(unsafe.Pointer(value)), 0, 0)
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
