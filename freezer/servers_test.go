package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// playServer is called as a lock server is, and has a file open in a file system that it
// sees elsewhere. Arguments: the mount, and how the file is opened.
func playServer(args []string) {
	const elsewhere = "/mnt"
	flags := map[string]int{"reads": os.O_RDONLY, "writes": os.O_WRONLY}[args[1]]
	err := errors.Join(
		os.WriteFile(args[0]+"/raft.db", nil, 0o600),
		unix.Mount(args[0], elsewhere, "", unix.MS_BIND, ""),
		unix.Unmount(args[0], unix.MNT_DETACH),
		os.WriteFile("/proc/self/comm", []byte(serverName), 0),
	)
	if err == nil {
		_, err = os.OpenFile(elsewhere+"/raft.db", flags, 0)
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	untilClosed()
	os.Exit(0)
}

// The files of a lock server are safe, wherever it has them.
func TestFSServers(t *testing.T) {
	needIsolation(t)
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		for _, how := range []string{"writes", "reads"} {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), roleVariable+"=server "+point+" "+how)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
			a := begin(t, cmd)
			o := Order{Targets: []Target{FileSystem(point)}, Timeout: 10 * time.Second}
			_, serr := SurveyFS(o)
			g := start(t)
			_, err := g.Freeze(context.Background(), o)
			if how == "writes" {
				said := fmt.Sprintf("/mnt/raft.db of lockerd (process %d) is on it", a.pid())
				if !errors.Is(err, ErrProtected) || !strings.Contains(fmt.Sprint(err), said) || !errors.Is(serr, ErrProtected) {
					t.Errorf("%s: %v; before: %v", fstype, err, serr)
				}
			} else if err != nil || serr != nil {
				t.Errorf("%s, which it reads: %v; before: %v", fstype, err, serr)
			}
			g.Close()
			await(t, "the guards' end", func() bool { return len(guards(t)) == 0 })
			// Killed, and not waited for, it writes nothing any more.
			if err := syscall.Kill(a.pid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			await(t, "the server's end", func() bool { return stateOf(a.pid()) == "Z" })
			if _, err := SurveyFS(o); err != nil {
				t.Errorf("%s, of a server that has ended: %v", fstype, err)
			}
			a.kill()
		}
	}
}

// An overlay writes to its upper file system, whatever name that was given by.
func TestFSOverlay(t *testing.T) {
	needIsolation(t)
	upper, lower := newFS(t, "ext4"), newFS(t, "btrfs")
	over := t.TempDir()
	command(t, "mkdir", upper+"/upper", upper+"/work")
	for _, in := range []string{upper, "/"} {
		named := strings.TrimPrefix(upper, in)
		named = strings.TrimPrefix(named, "/")
		if named != "" {
			named += "/"
		}
		mount := exec.Command("mount", "-t", "overlay", "-o",
			fmt.Sprintf("lowerdir=%s,upperdir=%supper,workdir=%swork", lower, named, named), "overlay", over)
		mount.Dir = in
		if out, err := mount.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, point := range []string{upper, lower} {
			o := Order{Targets: []Target{FileSystem(point)}, Timeout: 10 * time.Second, Protect: []string{over + "/to/come"}}
			_, err := SurveyFS(o)
			if point == upper && !errors.Is(err, ErrProtected) || point == lower && err != nil {
				t.Errorf("in %s: %s: %v", in, point, err)
			}
		}
		command(t, "umount", over)
	}
}

func TestParseFDInfo(t *testing.T) {
	flags, mnt, ok := parseFDInfo("pos:\t0\nflags:\t0100002\nmnt_id:\t29\nino:\t7\n")
	if !ok || flags != 0o100002 || mnt != 29 {
		t.Errorf("%o, %d, %v", flags, mnt, ok)
	}
	for _, bad := range []string{"", "pos:\t0\n", "flags:\t0100002\n", "mnt_id:\t29\n", "flags:\t9\nmnt_id:\t29\n", "flags:\t0\nmnt_id:\tx\n"} {
		if _, _, ok := parseFDInfo(bad); ok {
			t.Errorf("%q is understood", bad)
		}
	}
}
