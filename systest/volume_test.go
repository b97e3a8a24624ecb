package systest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// volume is a file system of its own in an image, mounted.
type volume struct {
	dir   string // where it is mounted
	image string
	kind  string
}

const (
	// rescueEnv makes the test program the one that thaws what a killed test has left.
	rescueEnv = "SYSTEST_RESCUE"
	// rescueFD is where a test hands it its file systems, and it waits for the end of all
	// who have it open.
	rescueFD = 3

	fithaw = 0xc0045878 // FITHAW of ioctl_fsfreeze(2)
)

// startRescuer starts a process that outlives the tests by a moment: a file system that
// stays frozen would never go away.
func startRescuer(t *testing.T) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, its := os.NewFile(uintptr(fds[0]), "rescue"), os.NewFile(uintptr(fds[1]), "rescue")
	defer its.Close()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), rescueEnv+"=1")
	c.ExtraFiles = []*os.File{its}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(t, c.Start())
	t.Cleanup(func() {
		ours.Close()
		c.Wait()
	})
	return ours
}

func rescue() int {
	conn, err := net.FileConn(os.NewFile(rescueFD, "rescue"))
	if err != nil {
		return 1
	}
	var open []int
	for data, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4)); ; {
		n, c, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(data, control)
		if n == 0 || err != nil {
			break
		}
		messages, err := unix.ParseSocketControlMessage(control[:c])
		if err != nil || len(messages) == 0 {
			continue
		}
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil {
			open = append(open, fds...)
		}
	}
	for _, fd := range open {
		_ = unix.IoctlSetInt(fd, fithaw, 0) // most are not frozen
	}
	return 0
}

// entrust hands a directory to the rescuer. The rescuer keeps it open, so that nothing
// of it can be unmounted but lazily.
func entrust(t *testing.T, dir string) {
	t.Helper()
	conn, err := net.FileConn(os.NewFile(uintptr(must1(unix.Dup(rescueFD))(t)), "rescue"))
	must(t, err)
	defer conn.Close()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil)
	must(t, err)
}

func must1[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// newVolume makes one in a directory, which should be in memory.
func newVolume(t *testing.T, dir, name, kind string, size int64) *volume {
	t.Helper()
	v := &volume{dir: filepath.Join(dir, name), image: filepath.Join(dir, name+".img"), kind: kind}
	must(t, os.WriteFile(v.image, nil, 0o600))
	must(t, os.Truncate(v.image, size))
	must(t, os.Mkdir(v.dir, 0o755))
	format := []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", v.image}
	if kind == "xfs" {
		format = []string{"mkfs.xfs", "-q", "-f", v.image}
	}
	program(t, format...)
	program(t, "mount", "-o", "loop,noatime", v.image, v.dir)
	entrust(t, v.dir)
	t.Cleanup(func() {
		if err := unix.Unmount(v.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", v.dir, err)
		}
	})
	return v
}

// copied is the records of a copy of the volume's image, after the file system has been
// found to be whole.
func (v *volume) copied(t *testing.T, image string) string {
	t.Helper()
	at := image + ".dir"
	must(t, os.MkdirAll(at, 0o755))
	options := "loop"
	if v.kind == "xfs" {
		options += ",nouuid" // the original is mounted
	} else {
		program(t, "e2fsck", "-fn", image)
	}
	program(t, "mount", "-o", options, image, at)
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount a copy: %v", err)
		}
	}()
	b, err := os.ReadFile(filepath.Join(at, recordsFile))
	must(t, err)
	return string(b)
}

// written waits until something can be written, and says how long that took.
func (v *volume) written(most time.Duration) (time.Duration, error) {
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(filepath.Join(v.dir, "probe"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err == nil {
			_, err = f.WriteString("x")
			err = errors.Join(err, f.Close())
		}
		done <- err
	}()
	select {
	case err := <-done:
		return time.Since(began), err
	case <-time.After(most):
		return most, fmt.Errorf("%s is frozen still after %v", v.dir, most)
	}
}

// looks is how long a write has to wait until its file system is taken for frozen.
const looks = 300 * time.Millisecond

// frozen says whether writes wait.
func (v *volume) frozen() bool {
	_, err := v.written(looks)
	return err != nil
}

// program runs one that has to succeed.
func program(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}
