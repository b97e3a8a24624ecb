package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"jx": main}) }

// TestScripts runs testdata/*.txtar.
func TestScripts(t *testing.T) { testscript.Run(t, testscript.Params{Dir: "testdata"}) }

func TestCommandLines(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		says string // somewhere
	}{
		{"", exitUsage, "Usage: jx COMMAND"},
		{"--help", exitPass, "Exit status:"},
		{"run --help", exitPass, "--workload"},
		{"dance", exitUsage, `no command "dance"`},
		{"run --workload dance", exitUsage, `no workload "dance"`},
		{"run --nemesis dance", exitUsage, `no fault "dance"`},
		{"run --nodes 1 --nemesis partition", exitUsage, "nobody to cut it off from"},
		{"run --time 1ms", exitUsage, "too short"},
		{"run --nodes", exitUsage, "--nodes"},
		{"run extra", exitUsage, "1 arguments"},
		{"selftest dance", exitUsage, `no mutant "dance"`},
		{"all --skip -1", exitUsage, "--skip -1"},
		{"check", exitUsage, "0 arguments"},
		{"check /nowhere", exitHarness, "/nowhere"},
		{"replay /nowhere", exitHarness, "/nowhere"},
		{"list", exitPass, "powerall"},
		{"versus", exitUsage, "counter or death"},
		{"versus --help", exitPass, "etcdctl lock"},
		{"versus dance", exitUsage, `no test "dance"`},
		{"versus counter --help", exitPass, "--processes"},
		{"versus counter --processes 1", exitUsage, "--processes 1: it can be 2 to"},
		{"versus counter --ttl 1s", exitUsage, "--ttl 1s"},
		{"versus counter --ttl 10s --pause 5s", exitUsage, "longer than a lease"},
		{"versus counter --dir /nowhere", exitHarness, "/nowhere"},
		{"versus death --runs 0", exitUsage, "--runs 0"},
		{"versus death --ttl 2500ms", exitUsage, "whole seconds"},
		{"versus-stamp", exitHarness, "that jx versus starts"},
	} {
		var out, errs bytes.Buffer
		code := dispatch(context.Background(), strings.Fields(c.args), &out, &errs)
		if all := out.String() + errs.String(); code != c.code || !strings.Contains(all, c.says) {
			t.Errorf("jx %s: status %d, want %d; it says %q, without %q", c.args, code, c.code, all, c.says)
		}
	}
}

// A stored history is judged again, with the status that belongs to its verdict.
func TestCheckTellsByItsStatus(t *testing.T) {
	dir := t.TempDir()
	copyRun(t, "../../regressions/last-come", dir)
	var out, errs bytes.Buffer
	code := dispatch(context.Background(), []string{"check", dir}, &out, &errs)
	if code != exitFail || !strings.Contains(out.String(), "first come, first served") {
		t.Errorf("status %d, %s%s", code, out.String(), errs.String())
	}
}

func copyRun(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
