package freezer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who waits for a frozen file system cannot be killed. So if the tests end, all their
// processes with them, and something is frozen still, somebody has to be there who
// thaws it: the rescuer, outside of their pid namespace. It also thaws, for tests that
// hang, all that has been there for rescueTime: longer than any test has use for it, even
// on a machine with much else to do.
const (
	rescueSocket = 3
	rescueTime   = 4 * time.Minute
)

func startRescuer() (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "rescuer")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=rescuer")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return os.NewFile(uintptr(pair[0]), "rescuer"), cmd.Start()
}

// playRescuer gets "+PATH" when a file system was made, and "-PATH" before it is
// unmounted. With the first comes the mount namespace.
func playRescuer([]string) {
	watched := map[string]time.Time{}
	polls := []unix.PollFd{{Fd: rescueSocket, Events: unix.POLLIN}}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		for path, since := range watched {
			if time.Since(since) > rescueTime {
				rescue(path)
				watched[path] = time.Now()
			}
		}
		if n, _ := unix.Poll(polls, 500); n < 1 {
			continue
		}
		n, oobn, _, _, err := unix.Recvmsg(rescueSocket, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		if ns := received(oob[:oobn]); ns >= 0 {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(ns, unix.CLONE_NEWNS)); err != nil {
				panic(err)
			}
			_ = unix.Close(ns)
		}
		if delete(watched, string(buf[1:n])); buf[0] == '+' {
			watched[string(buf[1:n])] = time.Now()
		}
	}
	// A guard that was killed may be about to freeze.
	for range 20 * min(len(watched), 1) {
		for path := range watched {
			rescue(path)
		}
		time.Sleep(100 * time.Millisecond)
	}
	os.Exit(0)
}

func rescue(path string) {
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		_ = freezeIoctl(fd, fithaw)
		_ = unix.Close(fd)
	}
}

func tellRescuer(tb testing.TB, text string) {
	tb.Helper()
	ns, err := os.Open("/proc/self/ns/mnt")
	if err == nil {
		err = unix.Sendmsg(rescueSocket, []byte(text), unix.UnixRights(int(ns.Fd())), nil, 0)
		_ = ns.Close()
	}
	if err != nil {
		tb.Fatal("tell the rescuer:", err)
	}
}

// playWriter appends a line to a file for each line of input.
func playWriter(args []string) {
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if _, err := fmt.Fprintln(f, lines.Text()); err != nil {
			panic(err)
		}
		fmt.Println("written")
	}
	os.Exit(0)
}

// playFS calls FS. Arguments: the mount, the flags and the timeout.
func playFS(args []string) {
	frozen, err := FS(context.Background(), args[0], FSFlags(count(args[1:])), count(args[2:]))
	fmt.Println(frozen, err)
	os.Exit(0)
}

// playFSHolder freezes file systems by a guard, and waits. Arguments: the timeout,
// whether to detach, and the mounts.
func playFSHolder(args []string) {
	timeout, err := time.ParseDuration(args[0])
	if err != nil {
		panic(err)
	}
	o := Order{Timeout: timeout, Detach: args[1] == "true"}
	for _, m := range args[2:] {
		o.Targets = append(o.Targets, FileSystem(m))
	}
	g, err := Start(context.Background(), "")
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	if _, err = g.Freeze(context.Background(), o); err == nil {
		var s State
		if s, err = g.State(); err == nil {
			fmt.Println("frozen", s.Guard)
		}
	}
	if err != nil {
		fmt.Println(err)
	}
	untilClosed()
	os.Exit(0)
}

var images int

// command runs a program that has to succeed.
func command(tb testing.TB, argv ...string) {
	tb.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		tb.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// newFS makes a file system in memory and mounts it. Whatever a test leaves frozen is
// thawed at its end.
func newFS(tb testing.TB, fstype string, options ...string) (point string) {
	tb.Helper()
	images++
	point = "/run/fs" + strconv.Itoa(images)
	image, size := point+".img", int64(64<<20)
	mkfs := []string{"mkfs.ext4", "-q", "-F"}
	switch fstype {
	case "xfs":
		mkfs, size = []string{"mkfs.xfs", "-q"}, 320<<20
	case "btrfs":
		mkfs, size = []string{"mkfs.btrfs", "-q"}, 160<<20
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(point, 0o755)); err != nil {
		tb.Fatal(err)
	}
	command(tb, append(mkfs, image)...)
	command(tb, "mount", "-t", fstype, "-o", strings.Join(append(options, "loop"), ","), image, point)
	tellRescuer(tb, "+"+point)
	tb.Cleanup(func() {
		thawByHand(tb, point)
		await(tb, "the end of a mount", func() bool { return unix.Unmount(point, 0) == nil })
		tellRescuer(tb, "-"+point)
		_ = os.Remove(image)
		_ = os.Remove(point)
	})
	return point
}

// thawByHand thaws whatever state the guards are in.
func thawByHand(tb testing.TB, point string) {
	tb.Helper()
	for _, pid := range guards(tb) {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	await(tb, "the end of the guards", func() bool { return len(guards(tb)) == 0 })
	if _, err := Recover(""); err != nil {
		tb.Error(err)
	}
	rescue(point)
}

// frozenFS asks the kernel alone.
func frozenFS(tb testing.TB, point string) bool {
	tb.Helper()
	f, err := openFS(must(readMounts()), point)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.close()
	frozen, err := f.probe()
	if err != nil {
		tb.Fatal(err)
	}
	return frozen
}

// cleanRun says that no guard has left anything.
func cleanRun(tb testing.TB) {
	tb.Helper()
	var left []string
	defer func() {
		for _, l := range left {
			text, _ := os.ReadFile(l)
			tb.Logf("left behind: %s: %s", l, text)
		}
	}()
	await(tb, "a clean directory", func() bool {
		left, _ = filepath.Glob("/run/freezer/*")
		return len(left) == 0
	})
}
