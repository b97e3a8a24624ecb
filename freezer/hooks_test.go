package freezer

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hooksDir makes a directory of shell scripts that say in a file, whose path is
// returned as well, that they were run.
func hooksDir(tb testing.TB, scripts map[string]string) (dir, said string) {
	tb.Helper()
	dir, said = tb.TempDir(), filepath.Join(tb.TempDir(), "said")
	for name, body := range scripts {
		text := fmt.Sprintf("#!/bin/sh\necho ${0##*/} $1 >>%s\n%s\n", said, body)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	return dir, said
}

// heard is what the scripts have said, on one line.
func heard(tb testing.TB, said string) string {
	tb.Helper()
	text, err := os.ReadFile(said)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

func TestHooks(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	env := `echo "$LOCKERD_ORDER $LOCKERD_ACTION $LOCKERD_TARGETS" >` + filepath.Join(t.TempDir(), "env")
	for _, c := range []struct {
		name    string
		scripts map[string]string
		limit   time.Duration // a minute if it is 0
		err     string
		want    string
		logged  string
	}{
		{
			name:    "none",
			scripts: nil,
		},
		{
			name:    "by name, and back",
			scripts: map[string]string{"20-b": "", "10-a": env, "30-c": ""},
			want:    "10-a freeze, 20-b freeze, 30-c freeze, 30-c thaw, 20-b thaw, 10-a thaw",
		},
		{
			name:    "one fails",
			scripts: map[string]string{"1": "", "2": "echo one; echo no space left; [ $1 = thaw ]", "3": ""},
			err:     `hook 2 freeze: exit status 1: "no space left"`,
			want:    "1 freeze, 2 freeze, 2 thaw, 1 thaw",
		},
		{
			name:    "one hangs, and what it has started",
			scripts: map[string]string{"1": "", "2": "[ $1 = thaw ] || { sleep 1000 & sleep 1000; }"},
			limit:   3 * time.Second,
			err:     "hook 2 freeze did not end within 3s",
			want:    "1 freeze, 2 freeze, 2 thaw, 1 thaw",
		},
		{
			name:    "what it has started goes on",
			scripts: map[string]string{"1": "[ $1 = thaw ] || sleep 1000 >/dev/null 2>&1 &"},
			want:    "1 freeze, 1 thaw",
		},
		{
			name:    "the thaw fails",
			scripts: map[string]string{"1": "", "2": "[ $1 = freeze ]", "3": ""},
			want:    "1 freeze, 2 freeze, 3 freeze, 3 thaw, 2 thaw, 1 thaw",
			logged:  "hook 2 thaw: exit status 1",
		},
	} {
		dir, said := hooksDir(t, c.scripts)
		for name, mode := range map[string]os.FileMode{".hidden": 0o755, "README": 0o644} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexit 1\n"), mode); err != nil {
				t.Fatal(err)
			}
		}
		x, l := newExecutor(t, func(e *ExecutorConfig) { e.HooksDir, e.HookTimeout = dir, cmp.Or(c.limit, time.Minute) })
		p, err := x.Prepare(t.Context(), 42, ActionFreeze, []byte(treeSpec(v.pid())), 0, 0)
		if err == nil {
			before := heard(t, said)
			if stopped(t) > 0 || strings.Contains(before, "thaw") || strings.Count(before, "freeze") != len(c.scripts) {
				t.Errorf("%s: before the freeze %q has run, and %d processes are stopped", c.name, before, stopped(t))
			}
			if _, err := p.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := heard(t, said); got != before || stopped(t) != 4 {
				t.Errorf("%s: in the freeze %q has run, and %d processes are stopped", c.name, got, stopped(t))
			}
			if err := p.Thaw(); err != nil {
				t.Fatal(err)
			}
		}
		if text := fmt.Sprint(err); (c.err == "") != (err == nil) || c.err != "" && (text != c.err || !errors.Is(err, ErrHook)) {
			t.Errorf("%s: %v, want %s", c.name, err, c.err)
		}
		if err := x.Close(); err != nil { // it waits for the hooks
			t.Error(err)
		}
		if got := heard(t, said); got != c.want {
			t.Errorf("%s: %q was run, want %q", c.name, got, c.want)
		}
		if c.logged != "" && !l.has(c.logged) {
			t.Errorf("%s: logged is %q, want %q", c.name, l.lines, c.logged)
		}
		if n := stopped(t); n > 0 {
			t.Fatalf("%s: %d processes are left stopped", c.name, n)
		}
		cleanRun(t)
	}
	text, err := os.ReadFile(env[strings.Index(env, ">")+1:])
	if want := fmt.Sprintf("42 freeze tree %d\n", v.pid()); err != nil || string(text) != want {
		t.Errorf("the hook was told %q, %v; want %q", text, err, want)
	}
}

// What others could have put there is not run.
func TestHooksOfOthers(t *testing.T) {
	needIsolation(t)
	for _, c := range []struct {
		name   string
		change func(dir string) error
		want   string
	}{
		{"as it should be", func(string) error { return nil }, ""},
		{"a hook for the group", func(dir string) error { return os.Chmod(dir+"/1", 0o775) }, "may be written by others"},
		{"a hook for all", func(dir string) error { return os.Chmod(dir+"/1", 0o757) }, "may be written by others"},
		{"a hook of another", func(dir string) error { return os.Chown(dir+"/1", 65534, 0) }, "owned by user 65534"},
		{"the directory for all", func(dir string) error { return os.Chmod(dir, 0o777) }, "may be written by others"},
		{"the directory for all, sticky", func(dir string) error { return os.Chmod(dir, 0o777|os.ModeSticky) }, "may be written by others"},
		{"the directory of another", func(dir string) error { return os.Chown(dir, 65534, 0) }, "owned by user 65534"},
		{"above it for all", func(dir string) error { return os.Chmod(filepath.Dir(dir), 0o777) }, "may be written by others"},
		{"a link to one of another", func(dir string) error {
			other := filepath.Join(filepath.Dir(dir), "other")
			return errors.Join(os.WriteFile(other, []byte("#!/bin/sh\n"), 0o755), os.Chown(other, 65534, 0), os.Symlink(other, dir+"/2"))
		}, "owned by user 65534"},
		{"no directory", func(dir string) error { return os.RemoveAll(dir) }, "no such file"},
	} {
		top, _ := hooksDir(t, nil)
		dir := filepath.Join(top, "hooks")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/1", []byte("#!/bin/sh\n"), 0o755), c.change(dir)); err != nil {
			t.Fatal(err)
		}
		x, err := NewExecutor(ExecutorConfig{FS: true, HooksDir: dir})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrHook)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err == nil {
			// And somebody may change it later.
			if err := os.Chmod(dir+"/1", 0o777); err != nil {
				t.Fatal(err)
			}
			point := newFS(t, "ext4")
			if _, err := x.Prepare(t.Context(), 1, ActionFSFreeze, []byte(fsSpec(point)), 0, 0); !errors.Is(err, ErrHook) {
				t.Errorf("changed later: %v", err)
			}
			_ = x.Close()
		}
	}
}

// An executor that is killed while a hook runs, or later, leaves nothing at rest for
// ever: the next one tells the hooks.
func TestHooksOfTheKilled(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	for _, when := range []string{"frozen", "at the second hook"} {
		second := "true"
		if when != "frozen" {
			second = "[ $1 = thaw ] || sleep 1000"
		}
		dir, said := hooksDir(t, map[string]string{"1": "", "2": second, "3": ""})
		e := act(t, "executor freeze "+treeSpec(v.pid())+" "+dir)
		want := "1 freeze, 2 freeze, 2 thaw, 1 thaw"
		if when == "frozen" {
			want = "1 freeze, 2 freeze, 3 freeze, 3 thaw, 2 thaw, 1 thaw"
			if line := e.line(t); line != "frozen" {
				t.Fatal(line)
			}
		} else {
			await(t, "the second hook", func() bool { return strings.HasSuffix(heard(t, said), "2 freeze") })
		}
		// While it lives its hooks are its own business.
		x, _ := newExecutor(t, func(c *ExecutorConfig) { c.HooksDir = dir })
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if got := heard(t, said); strings.Contains(got, "thaw") {
			t.Errorf("%s: %q was run while it lived", when, got)
		}
		e.kill()
		x, _ = newExecutor(t, func(c *ExecutorConfig) { c.HooksDir = dir })
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if got := heard(t, said); got != want {
			t.Errorf("%s: %q was run, want %q", when, got, want)
		}
		awaitThaw(t)
	}
}

// A hook that outlives its executor would bring to rest what was told to go on.
func TestHookOfTheKilledEnds(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	for _, c := range []struct{ name, freeze string }{
		{"itself", "echo $$ >%s; sleep 1000"},
		{"what it waits for", "sh -c 'echo $$ >%s; sleep 1000; exit'; exit"},
	} {
		file := filepath.Join(t.TempDir(), "pid")
		dir, said := hooksDir(t, map[string]string{"1": "[ $1 = thaw ] || { " + fmt.Sprintf(c.freeze, file) + "; }"})
		e := act(t, "executor freeze "+treeSpec(v.pid())+" "+dir)
		pid := 0
		await(t, "the hook", func() bool {
			text, _ := os.ReadFile(file)
			n, _ := fmt.Sscanf(string(text), "%d\n", &pid)
			return n == 1
		})
		// It is written down before anything is done about its end.
		await(t, "the hook's group", func() bool {
			found, _ := filepath.Glob("/run/freezer/*" + hooksEnd)
			text, _ := os.ReadFile(strings.Join(found, ""))
			return strings.Contains(string(text), "group ")
		})
		e.kill()
		x, _ := newExecutor(t, func(c *ExecutorConfig) { c.HooksDir = dir })
		await(t, "the thaw hook", func() bool { return strings.HasSuffix(heard(t, said), "thaw") })
		if s := stateOf(pid); s != "" && s != "Z" {
			t.Errorf("%s: the hook is in state %s when that of the thaw has begun", c.name, s)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if got := heard(t, said); got != "1 freeze, 1 thaw" {
			t.Errorf("%s: %q was run", c.name, got)
		}
		awaitThaw(t)
		cleanRun(t)
	}
}

// What a hook has started for good is not ended with another one's.
func TestHookLeavesOthers(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	file := filepath.Join(t.TempDir(), "pid")
	dir, _ := hooksDir(t, map[string]string{"1": "[ $1 = thaw ] || { sleep 1000 >/dev/null 2>&1 & echo $! >" + file + "; }"})
	e := act(t, "executor freeze "+treeSpec(v.pid())+" "+dir)
	if line := e.line(t); line != "frozen" {
		t.Fatal(line)
	}
	e.kill()
	x, _ := newExecutor(t, func(c *ExecutorConfig) { c.HooksDir = dir })
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	pid := 0
	if _, err := fmt.Sscan(string(must(os.ReadFile(file))), &pid); err != nil {
		t.Fatal(err)
	}
	if s := stateOf(pid); s != "S" && s != "R" {
		t.Errorf("it is in state %q", s)
	}
}
