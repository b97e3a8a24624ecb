package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bin has lockbench and lockerd as users build them.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "lockbench-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		out, err := exec.Command("go", "build", "-o", dir+"/", ".", "../lockerd").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "which measurement? see lockbench --help"},
		{"fly", `unknown command "fly"`},
		{"pairs stray", `unknown command "stray"`},
		{"pairs --clients 0", "--clients 0: from 1 to 200000 are possible"},
		{"pairs --clients x", "invalid argument"},
		{"pairs --for 0s", "--for 0s"},
		{"pairs --for 1000h", "--for 1000h"},
		{"pairs --proto 3", "--proto 3: there are 1 and 2"},
		{"pairs --servers 8", "--servers 8: from 1 to 7"},
		{"pairs --pipeline 1000", "--pipeline 1000"},
		{"pairs --pipeline 2 --reconnect", "leave --pipeline out"},
		{"pairs --servers 3 --connect a:1", "none of the others can be"},
		{"handoff --waiters -1", "--waiters -1"},
		{"handoff --proto 0", "--proto 0"},
		{"failover --runs 0", "--runs 0: from 1"},
		{"failover --servers 2", "--servers 2: from 3"},
		{"failover --connect a:1", "unknown flag: --connect"},
		{"deaths --runs 0", "--runs 0: from 1"},
		{"deaths --servers 8", "--servers 8: from 1 to 7"},
		{"deaths --connect a:1", "unknown flag: --connect"},
		{"elections --busy -1", "--busy -1"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit %d, %q; want %d, %q", c.args, code, errs.String(), exitUsage, c.want)
		}
		if strings.Count(errs.String(), "\n") != 1 || out.Len() != 0 {
			t.Errorf("%q: not one line: %q, %q", c.args, errs.String(), out.String())
		}
	}
}

func TestFailures(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "lockerd")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho no disk >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"pairs --lockerd /nonexistent", "/nonexistent is no program: say with --lockerd where lockerd is"},
		{"pairs --connect 127.0.0.1:1", "connection refused"},
		{"handoff --connect 127.0.0.1:1", "connection refused"},
		{"pairs --lockerd " + broken, "n1 has ended: no disk"},
		{"failover --lockerd " + broken, "has ended: no disk"},
		{"deaths --lockerd " + broken, "has ended: no disk"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(c.args), &out, &errs); code != exitFailed || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit %d, %q; want %d, %q", c.args, code, errs.String(), exitFailed, c.want)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--version"}, &out, &errs); code != 0 || out.String() != "Version: "+version+"\n" {
		t.Errorf("--version: %d, %q", code, out.String())
	}
	for _, c := range []string{"", "pairs", "handoff", "failover", "deaths", "elections"} {
		out.Reset()
		if code := run(t.Context(), append(strings.Fields(c), "--help"), &out, &errs); code != 0 || !strings.Contains(out.String(), "Usage:") {
			t.Errorf("%s --help: %d, %q", c, code, out.String())
		}
	}
}

// Each measurement once, short, with real servers, and what it finds as JSON.
func TestMeasure(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string // fields that are above zero
	}{
		{"pairs --clients 4 --for 100ms", []string{"pairs_per_second", "pair.p50_ms"}},
		{"pairs --clients 4 --for 100ms --proto 2 --servers 3", []string{"pairs_per_second", "pair.worst_ms"}},
		{"pairs --clients 4 --for 100ms --reconnect", []string{"pairs_per_second"}},
		{"pairs --clients 2 --for 100ms --pipeline 8", []string{"pairs_per_second"}},
		{"handoff --waiters 20 --for 100ms", []string{"handoffs_per_second", "queued_per_second", "handoff.p99_ms"}},
		{"failover --runs 1 --clients 2 --no-goals", []string{"attached.p50_ms", "walking.worst_ms", "first.p50_ms"}},
		{"deaths --runs 6 --no-goals", []string{"death.p50_ms", "death.p99_ms", "watchers"}},
		{"deaths --runs 2 --servers 1 --no-goals", []string{"death.worst_ms"}},
		{"elections --for 300ms --no-goals", []string{"pairs", "worst_pair_ms"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, out, errs := lockbench(t, append(strings.Fields(c.args), "--json")...)
			if code != 0 {
				t.Fatalf("exit %d: %s", code, errs)
			}
			above(t, out, c.want...)
		})
	}
}

func TestMeasureACut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	code, out, errs := lockbench(t, "failover", "--cut", "--runs", "1", "--clients", "2", "--no-goals", "--json")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	above(t, out, "attached.worst_ms", "walking.worst_ms")
}

// A run that is interrupted leaves neither servers nor files.
func TestInterrupted(t *testing.T) {
	t.Run("pairs", func(t *testing.T) { interrupt(t, "pairs", "--servers", "3", "--for", "60s") })
	t.Run("cut", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("network namespaces need root")
		}
		interrupt(t, "failover", "--cut")
	})
}

func interrupt(t *testing.T, args ...string) {
	t.Helper()
	tmp := t.TempDir()
	c := exec.Command(filepath.Join(bin, "lockbench"), args...)
	c.Env = append(os.Environ(), "TMPDIR="+tmp)
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(ls(t, tmp, "*/n3/*")) == 0 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the third server has no data yet: %s", errs.String())
		}
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != exitSignal || errs.String() != "lockbench: interrupted\n" {
		t.Errorf("exit %d, %q; want %d", code, errs.String(), exitSignal)
	}
	if left := ls(t, tmp, "*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// A server's command line has the name of its data directory in it.
	for _, f := range ls(t, "/proc", "[0-9]*/cmdline") {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(tmp)) {
			t.Errorf("still running: %q", b)
		}
	}
}

func ls(t *testing.T, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func lockbench(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(bin, "lockbench"), args...)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), o.String(), e.String()
}

// above checks that fields of a JSON text, "a.b" for b in a, are above zero.
func above(t *testing.T, text string, fields ...string) {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	for _, f := range fields {
		var v any = doc
		for key := range strings.SplitSeq(f, ".") {
			m, _ := v.(map[string]any)
			v = m[key]
		}
		if n, ok := v.(float64); !ok || n <= 0 {
			t.Errorf("%s is %v, want a number above 0, in %s", f, v, text)
		}
	}
}
