package freezer

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// touches are things that one can do to a file, and that change its file system.
var touches = map[string]func(path string) error{
	"overwrite": func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.Write([]byte("x"))
		}
		return err
	},
	"append": func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.Write([]byte("x"))
		}
		return err
	},
	"truncate": func(path string) error { return os.Truncate(path, 1) },
	"chmod":    func(path string) error { return os.Chmod(path, 0o640) },
	"utimes":   func(path string) error { return os.Chtimes(path, time.Now(), time.Now()) },
	"setxattr": func(path string) error { return unix.Setxattr(path, "user.test", []byte("x"), 0) },
	"link":     func(path string) error { return os.Link(path, path+".link") },
	"rename":   func(path string) error { return os.Rename(path, path+".new") },
	"remove":   os.Remove,
	"create":   func(path string) error { return os.WriteFile(path+".created", nil, 0o600) },
	"mkdir":    func(path string) error { return os.Mkdir(path+".dir", 0o700) },
}

// playToucher does a thing to a file after a line of input.
func playToucher(args []string) {
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	fmt.Println(touches[args[0]](args[1]))
	os.Exit(0)
}

func init() { roles["toucher"] = playToucher }

// While it is frozen whoever changes anything waits, whoever reads does not, it can be neither
// unmounted nor mounted otherwise, and what is on the device is whole and does not change.
func TestFSHoldsAllChanges(t *testing.T) {
	needIsolation(t)
	check := map[string][]string{
		"ext4":  {"e2fsck", "-fn"},
		"xfs":   {"xfs_repair", "-n"},
		"btrfs": {"btrfs", "check", "--readonly"},
	}
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		waiting := map[string]*actor{}
		for touch := range touches {
			path := point + "/" + touch
			if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			waiting[touch] = act(t, "toucher "+touch+" "+path)
		}
		g, _ := freeze(t, Order{Targets: []Target{FileSystem(point)}, Timeout: time.Minute})
		for touch, a := range waiting {
			fmt.Fprintln(a.stdin)
			await(t, fstype+": who is to wait: "+touch, func() bool { return waits(a.pid()) })
		}
		for touch, a := range waiting {
			path := point + "/" + touch
			text, err := os.ReadFile(path)
			st, serr := os.Stat(path)
			if err != nil || serr != nil || string(text) != "before" || st.Mode() != 0o600 {
				t.Errorf("%s, %s: %q, %v, %v, %v", fstype, touch, text, err, st, serr)
			}
			await(t, fstype+": who still waits: "+touch, func() bool { return waits(a.pid()) })
		}
		if names, err := os.ReadDir(point); err != nil || len(names) < len(touches) {
			t.Errorf("%s: %v, %v", fstype, names, err)
		}
		if err := unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s: mount anew: %v", fstype, err)
		}
		copied, again := point+".copy", point+".again"
		t.Cleanup(func() { _, _ = os.Remove(copied), os.Remove(again) })
		command(t, "cp", "--sparse=always", point+".img", copied)
		command(t, "cp", "--sparse=always", point+".img", again)
		command(t, "cmp", copied, again)
		thaw(t, g)
		for touch, a := range waiting {
			if line := a.line(t); line != "<nil>" {
				t.Errorf("%s, %s after the thaw: %s", fstype, touch, line)
			}
		}
		if fstype == "xfs" { // whose log wants to be replayed, empty as it is
			dir := t.TempDir()
			command(t, "mount", "-o", "loop,nouuid", copied, dir)
			command(t, "umount", dir)
		}
		command(t, append(check[fstype], copied)...)
	}
}

// What the kernel says has the names of freezefs(2).
func TestFSKernelErrors(t *testing.T) {
	f := &fileSystem{mount: &mount{fstype: "nfs4"}, path: "/mnt/a"}
	for errno, want := range map[unix.Errno]error{
		unix.EBUSY: ErrAlreadyFrozen, unix.EOPNOTSUPP: ErrNotSupported, unix.ENOTTY: ErrNotSupported,
		unix.ENOMEM: ErrNoMemory, unix.EPERM: ErrPermission, unix.EIO: unix.EIO, unix.EINVAL: unix.EINVAL,
	} {
		if err := f.failed(errno); !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "/mnt/a: ") {
			t.Errorf("%v: %v, want %v", errno, err, want)
		}
		// As who has asked the guard hears it.
		m := fail(opFailed, f.failed(errno))
		if m.Code != "" && !errors.Is(m.failure(), want) {
			t.Errorf("%v: %v arrives as %v", errno, want, m.failure())
		}
	}
	if err := f.failed(nil); err != nil {
		t.Error(err)
	}
}
