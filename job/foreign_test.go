package job

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startForeign runs a script as startGuarded does, in a process that is watched from
// here and no job. Its processes are buried by nobody but init.
func startForeign(t *testing.T, script string, members int) (*Foreign, *guarded) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	g := &guarded{id: newID(), pids: make(map[string]int)}
	// The shell between is to bury it.
	g.Cmd = exec.Command("sh", "-c", `sh -c "$@" & echo pid $!; wait; :`, "sh", script, "sh", os.Args[0])
	g.Env = append(os.Environ(), Mark(g.id))
	g.Stdout, g.Stderr = w, os.Stderr
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() {
		for _, pid := range g.pids {
			if running(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = g.Wait()
	})
	g.out = readLines(t, r)
	for range members + 1 {
		name, number, _ := strings.Cut(g.out.next(), " ")
		if g.pids[name], err = strconv.Atoi(number); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Watch(g.pids["pid"], g.id)
	if err != nil {
		t.Fatal(err)
	}
	return f, g
}

// family has one member that is known by its mark and one that is known by descent.
const family = `setsid -f "$1" member marked bare
env -i "$1" member child bare &
exec "$1" member command`

func TestForeignEnds(t *testing.T) {
	deaf := family + " deaf"
	for _, tc := range []struct {
		name, script string
		grace, least time.Duration
	}{
		{"told", family, patience, 0},
		{"at once", deaf, 0, 0},
		{"deaf", deaf, 300 * time.Millisecond, 300 * time.Millisecond},
		{"deaf child of one that hears", strings.Replace(family, "member child bare", "member child bare deaf", 1), 300 * time.Millisecond, 300 * time.Millisecond},
		{"stopped", `"$1" member stopped & kill -STOP $!; kill -CONT $!; ` + family, patience, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			members := 3 + strings.Count(tc.script, "member stopped")
			f, g := startForeign(t, tc.script, members)
			if pid := g.pids["stopped"]; pid != 0 {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			stranger := exec.Command("sleep", "1000")
			stranger.Env = append(os.Environ(), markName+"="+g.id+"0")
			if err := stranger.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = stranger.Process.Kill()
				_ = stranger.Wait()
			}()
			ended, all := f.Ended(), f.AllEnded()
			began := time.Now()
			left := f.End(syscall.SIGTERM, tc.grace)
			for left > 0 && time.Since(began) < patience/2 { // who was killed needs a processor to end
				left = f.End(syscall.SIGKILL, 0)
			}
			if left != 0 || len(g.living()) > 0 {
				t.Errorf("%d are left, and %v", left, g.living())
			}
			if took := time.Since(began); took < tc.least || took > tc.least+patience/2 {
				t.Errorf("it took %v, with %v of grace", took, tc.grace)
			}
			for name, c := range map[string]<-chan struct{}{"Ended": ended, "AllEnded": all} {
				select {
				case <-c:
				case <-time.After(patience):
					t.Errorf("%s is not closed", name)
				}
			}
			if !running(stranger.Process.Pid) {
				t.Error("a stranger was killed")
			}
		})
	}
}

// TestForeignOutlived: the end of all is not that of the command, and comes with the
// last one, however it is known.
func TestForeignOutlived(t *testing.T) {
	f, g := startForeign(t, family, 3)
	ended, all := f.Ended(), f.AllEnded()
	kill := func(name string) {
		t.Helper()
		if err := syscall.Kill(g.pids[name], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "the end of "+name, func() bool { return !slices.Contains(g.living(), name) })
	}
	// While the command lives its child is known by descent alone.
	kill("child")
	select {
	case <-ended:
		t.Fatal("the command has ended with its child")
	default:
	}
	kill("command")
	<-ended
	select {
	case <-all:
		t.Fatal("one lives still")
	case <-time.After(10 * killInterval): // in which nothing must happen
	}
	kill("marked")
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatal("nobody noticed the last end")
	}
}

func TestWatchNobody(t *testing.T) {
	c := exec.Command("true")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if f, err := Watch(c.Process.Pid, newID()); err == nil {
		t.Errorf("%+v is watched, and has ended", f)
	}
}

// TestSendWaits: who sends goes on when the other one says so, and hears if it ends
// before that.
func TestSendWaits(t *testing.T) {
	for _, ack := range []bool{true, false} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- Send(os.NewFile(uintptr(pair[0]), "ours"), []byte("text"), os.Stdin) }()
		text, file, err := Receive(pair[1], 100)
		if err != nil || string(text) != "text" || file == nil {
			t.Fatalf("received %q, %v, %v", text, file, err)
		}
		_ = file.Close()
		select {
		case err := <-sent:
			t.Errorf("not waited for: %v", err)
			sent <- err
		case <-time.After(50 * time.Millisecond): // in which nothing must happen
		}
		if ack {
			Acknowledge(pair[1])
		} else {
			_ = unix.Close(pair[1])
		}
		if err := <-sent; (err == nil) != ack {
			t.Errorf("acknowledged: %v; sent with %v", ack, err)
		}
	}
}

func TestMarksAddUp(t *testing.T) {
	t.Setenv(markName, "")
	if got := Mark("a"); got != markName+"=a" {
		t.Error(got)
	}
	t.Setenv(markName, "outer,inner")
	if got := Mark("a"); got != markName+"=outer,inner,a" {
		t.Error(got)
	}
	c := exec.Command("sleep", "1000")
	c.Env = append(os.Environ(), Mark("a"))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	await(t, "its environment", func() bool { return (&kin{mark: "a"}).marked(c.Process.Pid) })
	for mark, want := range map[string]bool{"outer": true, "inner": true, "a": true, "oute": false, "outer,inner": false, "": false} {
		if got := (&kin{mark: mark}).marked(c.Process.Pid); got != want {
			t.Errorf("marked with %q: %v", mark, got)
		}
	}
}
