package freezer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var fsTypes = []string{"ext4", "xfs", "btrfs"}

func optionsOf(tb testing.TB, point string) string {
	tb.Helper()
	for _, m := range must(readMounts()) {
		if m.point == point {
			return m.super
		}
	}
	tb.Fatal("not mounted:", point)
	return ""
}

func query(tb testing.TB, point string) FSState {
	tb.Helper()
	s, err := QueryFS(point)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestFSWritersWait(t *testing.T) {
	needIsolation(t)
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			var options []string
			if fstype == "xfs" {
				options = []string{"inode32"} // which a careless query would change
			}
			point := newFS(t, fstype, options...)
			had := optionsOf(t, point)
			if fstype == "xfs" && !strings.Contains(had, "inode32") {
				t.Fatal("mounted with", had)
			}
			w := act(t, "writer "+point+"/file")
			write := func(text string) {
				if _, err := fmt.Fprintln(w.stdin, text); err != nil {
					t.Fatal(err)
				}
			}
			write("first")
			w.line(t)
			if s := query(t, point); s.Frozen || s.By != nil || s.Type != fstype {
				t.Errorf("before: %+v", s)
			}
			g, r := freeze(t, Order{Targets: []Target{FileSystem(point)}, Timeout: time.Minute})
			if r.String() != "file system "+point {
				t.Errorf("the report is %q", r.String())
			}
			write("second")
			await(t, "the writer to wait", func() bool { return waits(w.pid()) })
			text, err := os.ReadFile(point + "/file")
			if err != nil || string(text) != "first\n" {
				t.Errorf("%q, %v", text, err)
			}
			if _, err := os.Stat(point + "/file"); err != nil {
				t.Error(err)
			}
			if s := query(t, point); !s.Frozen || s.By == nil || s.By.Guard != guards(t)[0] || s.By.Requester != os.Getpid() {
				t.Errorf("frozen: %+v", s)
			}
			if !frozenFS(t, point) {
				t.Error("the kernel does not know of it")
			}
			await(t, "the writer, who still waits", func() bool { return waits(w.pid()) })
			thaw(t, g)
			if line := w.line(t); line != "written" {
				t.Error(line)
			}
			if s := query(t, point); s.Frozen {
				t.Errorf("after: %+v", s)
			}
			if now := optionsOf(t, point); now != had {
				t.Errorf("mounted with %s, now %s", had, now)
			}
			w.kill()
			if err := unix.Unmount(point, 0); err != nil {
				t.Error("unmount after the thaw:", err)
			} else {
				command(t, "mount", "-o", "loop", point+".img", point)
			}
		})
	}
}

func TestFSTimeouts(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	for _, c := range []struct {
		env     string
		seconds int
		want    time.Duration
	}{
		{"", 20, 20 * time.Second},
		{"", 0, 60 * time.Second},
		{"300", 0, 300 * time.Second},
		{"-1", 0, -1},
		{"0", 0, 60 * time.Second},
		{"300", -1, -1},
		{"300", -12, -1},
	} {
		t.Setenv(timeoutVariable, c.env)
		began := time.Now()
		frozen, err := FS(t.Context(), point, FSFreeze, c.seconds)
		if err != nil || !frozen {
			t.Fatalf("%+v: %v, %v", c, frozen, err)
		}
		s := query(t, point)
		if s.By == nil || s.By.Left > c.want || (c.want < 0) != (s.By.Left < 0) || s.By.Left < c.want-time.Since(began) {
			t.Errorf("%+v: %+v", c, s.By)
		}
		if _, err := FS(t.Context(), point, FSThaw, 0); err != nil {
			t.Error(err)
		}
		if frozenFS(t, point) {
			t.Fatal("still frozen")
		}
		cleanRun(t)
	}
	prompt := promptness{}
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		var first, last time.Time // when it may be thawed, and when it has to be
		before(t, time.Second, func(timeout time.Duration) error {
			first = time.Now().Add(timeout)
			st, err := FreezeFS(t.Context(), point, timeout)
			last = time.Now().Add(st.Left)
			if err == nil && (st.Left > timeout || !st.Since.Before(time.Now())) {
				err = fmt.Errorf("%+v", st)
			}
			return err
		})
		prompt.since(t, "the deadline", "the thaw", last, stalls(), func() bool { return !frozenFS(t, point) })
		if time.Now().Before(first) {
			t.Errorf("%s: thawed before the deadline", fstype)
		}
	}
	prompt.judge(t, "the deadline")
	t.Setenv(timeoutVariable, "soon")
	if _, err := FS(t.Context(), point, FSFreeze, 0); !errors.Is(err, ErrOption) {
		t.Error(err)
	}
}

func TestFSErrors(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	bind := t.TempDir()
	inside := filepath.Join(point, "dir")
	other := t.TempDir() // on the file system of /tmp
	if err := errors.Join(os.Mkdir(inside, 0o755), unix.Mount("/", bind, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bind, 0) })
	for _, c := range []struct {
		mount   string
		flags   FSFlags
		timeout int
		want    error
	}{
		{point, FSThaw, 0, ErrNotFrozen},
		{inside, FSFreeze, 1, ErrNotMounted},
		{inside, FSQuery, 0, ErrNotMounted},
		{inside, FSThaw, 0, ErrNotMounted},
		{point + "/missing", FSFreeze, 1, ErrNotMounted},
		{other, FSFreeze, 1, ErrNotMounted},
		{"/proc", FSFreeze, 1, ErrNotSupported},
		{"/proc", FSQuery, 1, ErrNotSupported},
		{"/", FSFreeze, 1, ErrProtected},
		{bind, FSFreeze, 1, ErrProtected},
		{"/run", FSFreeze, 1, ErrProtected},
		{point, 0, 1, ErrOption},
		{point, FSFreeze | FSThaw, 1, ErrOption},
		{point, 8, 1, ErrOption},
		{point, FSFreeze, maxSeconds + 1, ErrOption},
		{"run", FSFreeze, 1, ErrOrder},
	} {
		frozen, err := FS(t.Context(), c.mount, c.flags, c.timeout)
		if !errors.Is(err, c.want) || frozen {
			t.Errorf("%s, flags %d: %v, %v; want %v", c.mount, c.flags, frozen, err, c.want)
		}
	}
	// A memory file system that nothing vital is on.
	memory := t.TempDir()
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(memory, 0) })
	if _, err := FreezeFS(t.Context(), memory, time.Second); !errors.Is(err, ErrNotSupported) {
		t.Error(err)
	}
	if _, err := FS(t.Context(), point, FSFreeze, 60); err != nil {
		t.Fatal(err)
	}
	if _, err := FS(t.Context(), point, FSFreeze, 60); !errors.Is(err, ErrAlreadyFrozen) {
		t.Error("frozen by a guard:", err)
	}
	if frozen, err := FS(t.Context(), point, FSQuery, 0); err != nil || !frozen {
		t.Error(frozen, err)
	}
	if err := ThawFS(t.Context(), point); err != nil {
		t.Error(err)
	}
	if s, err := SurveyFS(Order{Targets: []Target{FileSystem(point)}}); err != nil || len(s) != 1 || s[0].Frozen {
		t.Errorf("%+v, %v", s, err)
	}
	cleanRun(t)
}

// Our own data is safe even through a bind mount.
func TestFSProtected(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	bind := t.TempDir()
	if err := unix.Mount(point, bind, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bind, 0) })
	o := Order{Targets: []Target{FileSystem(bind)}, Timeout: time.Second, Protect: []string{point + "/data/to/come"}}
	if _, err := start(t).Freeze(t.Context(), o); !errors.Is(err, ErrProtected) {
		t.Error("in the order:", err)
	}
	if _, err := SurveyFS(o); !errors.Is(err, ErrProtected) {
		t.Error("before:", err)
	}
	t.Setenv(protectVariable, "/etc:"+point)
	if _, err := FreezeFS(t.Context(), bind, time.Second); !errors.Is(err, ErrProtected) {
		t.Error("in the environment:", err)
	}
	t.Setenv(protectVariable, "etc")
	if _, err := FreezeFS(t.Context(), bind, time.Second); !errors.Is(err, ErrOrder) || !strings.Contains(err.Error(), protectVariable) {
		t.Error("a relative path:", err)
	}
	// What a file system in an image cannot do without is its image.
	t.Setenv(protectVariable, "")
	image := filepath.Join(point, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-F", image)
	command(t, "mount", "-o", "loop", image, point+"/lost+found")
	t.Cleanup(func() { _ = unix.Unmount(point+"/lost+found", 0) })
	o.Protect = []string{point + "/lost+found"}
	if _, err := start(t).Freeze(t.Context(), o); !errors.Is(err, ErrProtected) {
		t.Error("with the image:", err)
	}
	if frozenFS(t, point) {
		t.Error("it is frozen")
	}
}

// What the system needs is safe wherever it is, and wherever else that is mounted.
func TestFSVital(t *testing.T) {
	needIsolation(t)
	for _, dir := range []string{"/usr", "/var", "/tmp"} {
		point := newFS(t, "ext4")
		freeze := func(g *Guard, mount string) error {
			_, err := g.Freeze(t.Context(), Order{Targets: []Target{FileSystem(mount)}, Timeout: time.Second})
			return err
		}
		first, second := start(t), start(t) // their libraries may be in /usr
		if err := unix.Mount(point, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		here, elsewhere := freeze(first, dir), freeze(second, point)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{here, elsewhere} {
			if !errors.Is(err, ErrProtected) || !strings.Contains(fmt.Sprint(err), dir+" is on it") {
				t.Errorf("%s: %v", dir, err)
			}
		}
	}
	// And what is swapped out to a file. The kernel's list is not changed: another one is
	// mounted over it.
	point := newFS(t, "ext4")
	list := point + ".swaps"
	text := "Filename\tType\tSize\tUsed\tPriority\n/dev/vda2 partition 1 0 -2\n" + point + "/swap\\040file file 1048572 0 -3\n"
	if err := errors.Join(
		os.WriteFile(list, []byte(text), 0o600),
		os.WriteFile(point+"/swap file", nil, 0o600),
		unix.Mount(list, "/proc/swaps", "", unix.MS_BIND, ""),
	); err != nil {
		t.Fatal(err)
	}
	_, err := FreezeFS(t.Context(), point, time.Second)
	if err := errors.Join(unix.Unmount("/proc/swaps", 0), os.Remove(list)); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, ErrProtected) || !strings.Contains(fmt.Sprint(err), "swap file") {
		t.Errorf("with a swap file: %v", err)
	}
	if frozenFS(t, point) {
		t.Error("it is frozen")
	}
}

func TestFSNotRoot(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	for _, flags := range []FSFlags{FSQuery, FSFreeze, FSThaw} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=fs %s %d 5", roleVariable, point, flags))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if want := "false " + ErrPermission.Error() + "\n"; err != nil || string(out) != want {
			t.Errorf("flags %d: %q, %v; want %q", flags, out, err, want)
		}
	}
}

// What somebody else has frozen is seen and thawed, but not taken over.
func TestFSFrozenByOthers(t *testing.T) {
	needIsolation(t)
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		command(t, "fsfreeze", "-f", point)
		if s := query(t, point); !s.Frozen || s.By != nil {
			t.Errorf("%s: %+v", fstype, s)
		}
		if _, err := FreezeFS(t.Context(), point, time.Second); !errors.Is(err, ErrAlreadyFrozen) {
			t.Errorf("%s: %v", fstype, err)
		}
		if !frozenFS(t, point) {
			t.Errorf("%s: the refused freeze has thawed it", fstype)
		}
		if err := ThawFS(t.Context(), point); err != nil || frozenFS(t, point) {
			t.Errorf("%s: %v; frozen: %v", fstype, err, frozenFS(t, point))
		}
		// And the other way round.
		g, _ := freeze(t, Order{Targets: []Target{FileSystem(point)}, Timeout: time.Minute})
		command(t, "fsfreeze", "-u", point)
		if s := query(t, point); s.Frozen { // its guard knows of it soon, or already
			t.Errorf("%s, thawed by others: %+v", fstype, s)
		}
		if err := g.Thaw(); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), point) {
			t.Errorf("%s, thawed by others: %v", fstype, err)
		}
		if s := query(t, point); s.Frozen || s.By != nil {
			t.Errorf("%s, after the thaw: %+v", fstype, s)
		}
		if _, err := FreezeFS(t.Context(), point, time.Minute); err != nil {
			t.Fatal(err)
		}
		command(t, "fsfreeze", "-u", point)
		if err := ThawFS(t.Context(), point); !errors.Is(err, ErrNotFrozen) {
			t.Errorf("%s: ThawFS after others: %v", fstype, err)
		}
	}
	cleanRun(t)
}

func TestFSUnmount(t *testing.T) {
	needIsolation(t)
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		if _, err := FreezeFS(t.Context(), point, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(point, 0); err != unix.EBUSY {
			t.Errorf("%s: unmount: %v", fstype, err)
			if err == nil {
				command(t, "mount", "-o", "loop", point+".img", point)
			}
		}
		if err := ThawFS(t.Context(), point); err != nil {
			t.Error(err)
		}
	}
}

// Several mounts of one file system are one, and several file systems one unit.
func TestFSDomains(t *testing.T) {
	needIsolation(t)
	first, second := newFS(t, "btrfs"), newFS(t, "ext4")
	bind, sub := t.TempDir(), t.TempDir()
	command(t, "btrfs", "-q", "subvolume", "create", first+"/sub")
	if err := os.Mkdir(second+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	source := query(t, first).Source
	if err := errors.Join(
		unix.Mount(source, sub, "btrfs", 0, "subvol=sub"),
		unix.Mount(second+"/dir", bind, "", unix.MS_BIND, ""),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		thawByHand(t, first)
		rescue(second)
		_, _ = unix.Unmount(sub, 0), unix.Unmount(bind, 0)
	})
	o := Order{Timeout: time.Minute}
	for _, m := range []string{sub, bind, first, second} {
		o.Targets = append(o.Targets, FileSystem(m))
	}
	s, err := SurveyFS(o)
	if err != nil || len(s) != 2 || s[0].Mount != bind || s[1].Mount != sub {
		t.Errorf("the youngest is not first: %+v, %v", s, err)
	}
	g, r := freeze(t, o)
	if !slices.Equal(r.FileSystems, []string{bind, sub}) {
		t.Errorf("%+v", r)
	}
	for _, m := range []string{sub, bind, first, second} {
		if s := query(t, m); !s.Frozen || s.By == nil {
			t.Errorf("%s: %+v", m, s)
		}
		if _, err := FreezeFS(t.Context(), m, time.Second); !errors.Is(err, ErrAlreadyFrozen) {
			t.Errorf("%s: %v", m, err)
		}
	}
	if err := ThawFS(t.Context(), first); err != nil { // and what was frozen with it
		t.Error(err)
	}
	<-g.Done()
	if frozenFS(t, first) || frozenFS(t, bind) {
		t.Error("not all is thawed")
	}
	// All or nothing: the older one, which comes last, refuses.
	command(t, "fsfreeze", "-f", first)
	if r, err := start(t).Freeze(t.Context(), o); !errors.Is(err, ErrAlreadyFrozen) || !slices.Equal(r.FileSystems, []string{bind}) {
		t.Errorf("%+v, %v", r, err)
	}
	if frozenFS(t, second) || !frozenFS(t, first) {
		t.Error("after an error it is not as before")
	}
}

// fsKills is how often each is killed.
func fsKills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("FREEZER_TEST_FSKILLS")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("FREEZER_TEST_FSKILLS=%s: %v", text, err)
	}
	return n
}

// Whoever is killed, at whatever moment, nothing stays frozen.
func TestFSKills(t *testing.T) {
	needIsolation(t)
	prompt := promptness{}
	t.Run("ext4 and xfs", func(t *testing.T) {
		k := newFSKiller(t, prompt, "ext4", "xfs")
		for i := range fsKills(t) {
			k.round([]func(detached bool){k.killRequester, k.killGuard, k.killBoth}[i%3], i%6 > 2, i%5 == 4 || i%12 == 0)
		}
		k.sum()
	})
	// Who thaws a btrfs must not be killed, see thaw: so of guards only those that do not.
	t.Run("btrfs", func(t *testing.T) {
		k := newFSKiller(t, prompt, "btrfs", "ext4")
		for i := range fsKills(t) / 2 {
			k.round([]func(detached bool){k.killRequester, k.killBoth}[i%2], i%4 > 1, i%5 == 4 || i%8 == 0)
		}
		k.sum()
	})
	prompt.judge(t, "a requester killed")
}

type fsKiller struct {
	*testing.T
	prompt    promptness // by what was killed when all was frozen
	alone     bool       // nobody but the guard can thaw
	points    []string
	writer    *actor // there is something to flush
	requester *actor
	guards    []int
	usual     time.Duration // that a freeze takes now
	begun     [3]int        // how often with so many file systems
	recovered int
}

func newFSKiller(t *testing.T, prompt promptness, fstypes ...string) *fsKiller {
	t.Helper()
	k := &fsKiller{T: t, prompt: prompt}
	for _, f := range fstypes {
		k.points = append(k.points, newFS(t, f))
	}
	k.writer = act(t, "writer "+k.points[0]+"/file")
	k.usual = 40 * time.Millisecond
	return k
}

func (k *fsKiller) anyFrozen() bool {
	return slices.ContainsFunc(k.points, func(p string) bool { return frozenFS(k, p) })
}

// noted counts what is frozen, or about to be. It does not ask the kernel, which
// would wait for a freeze that has begun.
func (k *fsKiller) noted() (n int) {
	for _, r := range must(records("/run/freezer")) {
		n += len(r.entries)
	}
	return n
}

// round freezes, and kills when it is done, or at a moment that may be before.
func (k *fsKiller) round(kill func(detached bool), detached, done bool) {
	if _, err := fmt.Fprintln(k.writer.stdin, "more"); err != nil {
		k.Fatal(err)
	}
	k.writer.line(k)
	k.requester = act(k, fmt.Sprintf("fsholder 10m %v %s", detached, strings.Join(k.points, " ")))
	k.guards = guards(k)
	if done {
		began := time.Now()
		k.requester.line(k)
		k.usual = time.Since(began)
	} else {
		time.Sleep(time.Duration(rand.Int64N(int64(k.usual)))) // the moment is the test
	}
	noted := k.noted()
	k.begun[noted]++
	k.alone = false
	kill(detached)
	cause := "others"
	if k.alone && noted == len(k.points) {
		cause = "a requester killed"
	}
	k.prompt.await(k, cause, "the thaw", func() bool { return len(guards(k)) == 0 && k.noted() == 0 })
	cleanRun(k)
	if k.anyFrozen() {
		k.Fatal("something is left frozen")
	}
	k.requester.kill()
}

func (k *fsKiller) killRequester(detached bool) {
	k.requester.kill()
	k.alone = !detached
	if detached { // it stays frozen if it was
		if err := ThawFS(k.Context(), k.points[1]); err != nil && !errors.Is(err, ErrNotFrozen) {
			k.Fatal(err)
		}
	}
}

// killGuard lets the requester thaw, if it is still there.
func (k *fsKiller) killGuard(detached bool) {
	k.slay()
	if detached {
		k.requester.kill()
		if _, err := Recover(""); err != nil {
			k.Fatal(err)
		}
	}
}

func (k *fsKiller) killBoth(bool) {
	for _, pid := range k.guards { // it cannot act between the two
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	k.requester.kill()
	k.slay()
	done, err := Recover("")
	if err != nil {
		k.Fatal(err)
	}
	for _, d := range done {
		k.recovered += min(d.FileSystems, 1)
	}
}

func (k *fsKiller) slay() {
	for _, pid := range k.guards {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	await(k, "the guard's end", func() bool { return len(guards(k)) == 0 })
}

func (k *fsKiller) sum() {
	if k.begun[2] == 0 || k.recovered == 0 {
		k.Errorf("begun %v times, recovered %d times: that proves nothing", k.begun, k.recovered)
	}
	k.Logf("killed with 0, 1 and 2 frozen, or about to be: %v times; recovered by journal: %d", k.begun, k.recovered)
}

// Once the guard is dead nothing keeps a frozen file system from being unmounted, and
// it can be thawed all the same.
func TestFSUnmountedWithoutGuard(t *testing.T) {
	needIsolation(t)
	for _, fstype := range fsTypes {
		for _, thaw := range []string{"recover", "elsewhere"} {
			point := newFS(t, fstype)
			r := act(t, "fsholder 1m true "+point)
			var guard int
			if _, err := fmt.Sscanf(r.line(t), "frozen %d", &guard); err != nil {
				t.Fatal(err)
			}
			source := query(t, point).Source
			_ = syscall.Kill(guard, syscall.SIGSTOP)
			r.kill()
			_ = syscall.Kill(guard, syscall.SIGKILL)
			await(t, "the guard's end", func() bool { return len(guards(t)) == 0 })
			if s := query(t, point); !s.Frozen || !s.Lost || s.By == nil || s.By.Guard != guard {
				t.Errorf("%+v", s)
			}
			if err := unix.Unmount(point, 0); err != nil {
				t.Fatal(err)
			}
			if thaw == "elsewhere" {
				if err := unix.Mount(source, point, fstype, 0, ""); err != nil {
					t.Fatal(err)
				}
			}
			done, err := Recover("")
			if err != nil || len(done) != 1 || done[0].FileSystems != 1 {
				t.Errorf("%s, %s: %+v, %v", fstype, thaw, done, err)
			}
			if thaw == "recover" {
				command(t, "mount", "-o", "loop", point+".img", point)
			}
			if frozenFS(t, point) {
				t.Errorf("%s, %s: still frozen", fstype, thaw)
			}
		}
	}
}

// A deadline in the middle of a freeze leaves nothing frozen.
func TestFSCancelled(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*2*time.Millisecond)
		g := start(t)
		_, err := g.Freeze(ctx, Order{Targets: []Target{FileSystem(point)}, Timeout: time.Duration(10-i) * 3 * time.Millisecond})
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrDeadline) {
			t.Error(err)
		}
		_ = g.Thaw()
		if frozenFS(t, point) {
			t.Fatal("still frozen")
		}
	}
}

func TestParseMounts(t *testing.T) {
	got, err := parseMounts([]byte("36 35 98:1 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n" +
		"37 36 0:24 / / rw - tmpfs  rw\n"))
	want := []mount{
		{id: 36, dev: unix.Mkdev(98, 1), point: "/mnt 2", fstype: "ext3", source: "/dev/root", super: "rw,errors=continue"},
		{id: 37, dev: unix.Mkdev(0, 24), point: "/", fstype: "tmpfs", super: "rw"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if !got[0].option("rw") || got[0].option("errors") {
		t.Error("its options are wrong")
	}
	for _, bad := range []string{"x\n", "36 35 98:1 /mnt1 /mnt2 rw ext3 /dev/root rw\n", "36 35 98 / / rw - a b c\n", "x 35 9:8 / / rw - a b c\n"} {
		if got, err := parseMounts([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("36 35 98:1 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseMounts(text)
		if err == nil && len(got) > bytes.Count(text, []byte("\n"))+1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestFSJournalLine(t *testing.T) {
	want := entry{kind: entryFS, inode: 1 << 40, source: `ext4 /dev/"disk" 1`, path: "/a b\n\"c\""}
	line := string(want.append(nil))
	got, err := parseEntry(strings.TrimSuffix(line, "\n"))
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"fs", "fs 1", "fs x \"a\" \"b\"", "fs 1 \"a\"", "fs 1 a b"} {
		if e, err := parseEntry(bad); !errors.Is(err, errJournal) {
			t.Errorf("%q: %+v, %v", bad, e, err)
		}
	}
}
