package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// User is one for whom a checkpoint is made who is not root.
type User struct {
	UID, GID int
	Groups   []int // the others
}

// ErrNotTheirs says that a user may not have what a process knows.
var ErrNotTheirs = errors.New("it is not theirs alone")

// mayHave looks in the images whether the user could have read everything in them, as
// ptrace(2) decides it: no process has ever been another's, has a capability, or hides its
// memory.
func (u *User) mayHave(dir string, m *Manifest) error {
	refuse := func(p Process, why string) error {
		return fail(Env, syscall.EPERM, "%w: process %d (%s) %s", ErrNotTheirs, p.PID, p.Command, why)
	}
	for _, p := range m.Processes {
		if p.Ended {
			continue
		}
		for _, tid := range append([]int{p.PID}, p.Threads...) {
			known := false
			err := readImage(filepath.Join(dir, fmt.Sprintf("core-%d.img", tid)), func() proto.Message { return &criucore.CoreEntry{} },
				func(msg proto.Message) error {
					c := msg.(*criucore.CoreEntry).GetThreadCore().GetCreds()
					if c == nil {
						return nil
					}
					known = true
					for _, id := range []uint32{c.GetUid(), c.GetEuid(), c.GetSuid(), c.GetFsuid()} {
						if int(id) != u.UID {
							return refuse(p, fmt.Sprintf("is of user %d", id))
						}
					}
					for _, id := range []uint32{c.GetGid(), c.GetEgid(), c.GetSgid(), c.GetFsgid()} {
						if int(id) != u.GID && !slices.Contains(u.Groups, int(id)) {
							return refuse(p, fmt.Sprintf("is of group %d", id))
						}
					}
					if slices.ContainsFunc(c.GetCapPrm(), func(bits uint32) bool { return bits != 0 }) {
						return refuse(p, "has capabilities")
					}
					return nil
				})
			if err != nil {
				return err
			}
			if !known {
				return refuse(p, "does not say whose it is")
			}
		}
		err := readImage(filepath.Join(dir, fmt.Sprintf("mm-%d.img", p.PID)), func() proto.Message { return &mm.MmEntry{} },
			func(msg proto.Message) error {
				if msg.(*mm.MmEntry).GetDumpable() != 1 {
					return refuse(p, "hides its memory (PR_SET_DUMPABLE)")
				}
				return nil
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// do calls f with the rights that the user has on files. What f does with files has to
// be done in its own goroutine. See credentials(7) and setfsuid(2).
func (u *User) do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: no other goroutine gets this thread
		// The first change hides the memory of this program, as it would be that of a
		// thread with another's rights.
		dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		if err == nil {
			if err = u.become(); err == nil {
				err = f()
			}
			_, _ = unix.SetfsuidRetUid(os.Geteuid())
			if dumpable == 1 {
				err = errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
			}
		}
		result <- err
	}()
	return <-result
}

// become is for this thread alone, unlike syscall.Setgroups and its like.
func (u *User) become() error {
	groups := make([]uint32, len(u.Groups), len(u.Groups)+1)
	for i, g := range u.Groups {
		groups[i] = uint32(g)
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return os.NewSyscallError("setgroups", errno)
	}
	// They return what was before, and no error.
	_, _ = unix.SetfsgidRetGid(u.GID)
	_, _ = unix.SetfsuidRetUid(u.UID)
	gid, _ := unix.SetfsgidRetGid(-1)
	uid, _ := unix.SetfsuidRetUid(-1)
	if uid != u.UID || gid != u.GID {
		return fmt.Errorf("take the rights of user %d: %w", u.UID, syscall.EPERM)
	}
	return nil
}

// partEnd ends the name of a file in the making.
const partEnd = ".part"

// userFile is a file that is made for a user, and has another name until it is whole. Its
// directory stays the same, whatever the user renames.
type userFile struct {
	*os.File
	user *User
	dir  *os.File
	name string
}

// create makes the file for path. One that somebody has left there who was killed is
// replaced: it is not locked.
func (u *User) create(path string) (f *userFile, err error) {
	f = &userFile{user: u, name: filepath.Base(path)}
	err = u.do(func() error {
		if err := replaceable(path); err != nil {
			return err
		}
		if f.dir, err = os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
		for range 3 {
			fd, err := unix.Openat(int(f.dir.Fd()), f.part(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
			if err == nil {
				f.File = os.NewFile(uintptr(fd), path)
				return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			}
			if err != unix.EEXIST {
				return &os.PathError{Op: "create", Path: path + partEnd, Err: err}
			}
			fd, err = unix.Openat(int(f.dir.Fd()), f.part(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
					err = unix.Unlinkat(int(f.dir.Fd()), f.part(), 0)
				}
				_ = unix.Close(fd)
			}
			if err != nil && err != unix.ENOENT {
				return fail(Temp, syscall.EBUSY, "%s%s is there: %w", path, partEnd, err)
			}
		}
		return fail(Temp, syscall.EBUSY, "%s%s comes and goes", path, partEnd)
	})
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *userFile) part() string { return f.name + partEnd }

// publish brings it to the disk and gives it its name.
func (f *userFile) publish(sync bool) error {
	return f.user.do(func() error {
		if sync {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if err := unix.Renameat(int(f.dir.Fd()), f.part(), int(f.dir.Fd()), f.name); err != nil {
			return &os.PathError{Op: "give its name to", Path: f.Name(), Err: err}
		}
		if !sync {
			return nil
		}
		dir, err := unix.Openat(int(f.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == unix.EACCES { // they may write there, and not read: all of it, then
			return unix.Syncfs(int(f.Fd()))
		}
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.Fsync(dir)
	})
}

// discard removes it.
func (f *userFile) discard() {
	_ = f.user.do(func() error { return unix.Unlinkat(int(f.dir.Fd()), f.part(), 0) })
}

func (f *userFile) close() {
	if f.File != nil {
		_ = f.File.Close()
	}
	if f.dir != nil {
		_ = f.dir.Close()
	}
}
