package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUntrusted says that somebody else than root and us could have written a context file.
// To restart it would be to do, as root, what they want.
var ErrUntrusted = errors.New("it is not certain who has written it")

func untrusted(path, format string, args ...any) error {
	return fail(Args, syscall.EPERM, "%s: %w: %s; see to it that only root can (chown, chmod)", path, ErrUntrusted, fmt.Sprintf(format, args...))
}

// maxLinks is that of path_resolution(7).
const maxLinks = 40

// Trust is an error, [ErrUntrusted], unless only root and our user can write, replace or
// rename what is at a path, whatever way that takes: each directory on it, each symbolic link
// and its end are theirs, and no group or others may write there. If a directory on the way is
// sticky others may, but not to what is in it that is not theirs.
func Trust(path string) error {
	fd, err := walkTrusted(path)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// openTrusted opens a file that is to be trusted.
func openTrusted(path string) (*os.File, error) {
	look, err := walkTrusted(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(look)
	var st unix.Stat_t
	if err := unix.Fstat(look, &st); err != nil {
		return nil, &os.PathError{Op: "look at", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, &os.PathError{Op: "read", Path: path, Err: unix.EISDIR}
	default: // opening it may wait, or do something
		return nil, fail(Args, syscall.EINVAL, "%s is no regular file: its descriptor may be given instead", path)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", look), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// trustReader looks at what was opened by others: of a file the way to it is their business.
func trustReader(r io.Reader) error {
	f, ok := r.(*os.File)
	if !ok {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	return trustFile(f.Name(), &st)
}

func trustFile(path string, st *unix.Stat_t) error {
	if !ours(st) {
		return untrusted(path, "it belongs to user %d", st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return untrusted(path, "its group or others may write there (mode %o)", st.Mode&0o7777)
	}
	return nil
}

func ours(st *unix.Stat_t) bool { return st.Uid == 0 || int(st.Uid) == os.Geteuid() }

// walkTrusted follows a path, and returns a descriptor of its end that is good for looking
// at it (O_PATH), and with an error none.
func walkTrusted(path string) (fd int, err error) {
	absolute := path // not filepath.Abs, for which a/../b is b even if a is a link
	if !filepath.IsAbs(path) {
		here, err := os.Getwd()
		if err != nil {
			return -1, classed(err, "find our directory")
		}
		absolute = here + "/" + path
	}
	at := "/"
	if fd, err = unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return -1, &os.PathError{Op: "open", Path: at, Err: err}
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
	}()
	if err := trustWay(path, at, fd); err != nil {
		return fd, err
	}
	links := 0
	for rest := splitPath(absolute); len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fd, &os.PathError{Op: "open", Path: path, Err: err}
		}
		var st unix.Stat_t
		if err := unix.Fstat(next, &st); err != nil {
			_ = unix.Close(next)
			return fd, &os.PathError{Op: "look at", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			_ = unix.Close(fd)
			fd, at = next, filepath.Join(at, name)
			if len(rest) > 0 {
				if err := trustWay(path, at, fd); err != nil {
					return fd, err
				}
			}
			continue
		}
		target, err := readLink(next)
		_ = unix.Close(next)
		link := filepath.Join(at, name)
		switch links++; {
		case err != nil:
			return fd, &os.PathError{Op: "read", Path: link, Err: err}
		case links > maxLinks:
			return fd, &os.PathError{Op: "open", Path: path, Err: unix.ELOOP}
		case !ours(&st):
			return fd, untrusted(path, "the symbolic link %s belongs to user %d", link, st.Uid)
		}
		if filepath.IsAbs(target) {
			_ = unix.Close(fd)
			at = "/"
			if fd, err = unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
				return fd, &os.PathError{Op: "open", Path: at, Err: err}
			}
		}
		rest = append(splitPath(target), rest...)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fd, &os.PathError{Op: "look at", Path: path, Err: err}
	}
	return fd, trustFile(path, &st)
}

func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// readLink reads a symbolic link by a descriptor of it.
func readLink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	if n == 0 || n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// trustWay looks at what a path leads through.
func trustWay(path, at string, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "look at", Path: at, Err: err}
	}
	if !ours(&st) {
		return untrusted(path, "its directory %s belongs to user %d", at, st.Uid)
	}
	if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return untrusted(path, "the group of its directory %s, or others, may rename and replace what is in it (mode %o)", at, st.Mode&0o7777)
	}
	return nil
}
