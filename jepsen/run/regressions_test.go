package run_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/run"
)

// Histories that were once found wrong are found wrong for ever, by the same check.
// Most are of servers with a deliberate fault, and all are named for theirs.
func TestRegressions(t *testing.T) {
	by := map[string]string{
		"double-grant":   "holds exclude each other",
		"false-death":    "no hold is lost",
		"follower-read":  check.Linearizable,
		"ghost-place":    "nothing is left behind",
		"given-up":       "nothing is left behind",
		"last-come":      "first come, first served",
		"lost-release":   "no hold is lost",
		"late-death":     "nothing outlasts its end",
		"late-limit":     "nothing outlasts its end",
		"late-lock":      "nothing is left behind",
		"no-fsync":       "fences are unique",
		"no-memory":      "no hold is lost",
		"no-quorum":      "what was told was done",
		"snapshot-index": "servers tell one story",
		"stale-read":     check.Linearizable,
		"two-of-any":     check.Linearizable,
		"wall-clock":     "no hold is lost",
	}
	dirs, err := filepath.Glob("../regressions/*")
	if err != nil || len(dirs) != len(by) {
		t.Errorf("%d histories, %d are known by name: %v", len(dirs), len(by), err)
	}
	for _, dir := range dirs {
		in, err := run.Load(dir)
		if err != nil {
			t.Error(err)
			continue
		}
		var failed []string
		for _, r := range check.All(in) {
			if r.Verdict == check.Fail {
				failed = append(failed, r.Check)
			}
		}
		if want := by[filepath.Base(dir)]; !slices.Contains(failed, want) {
			t.Errorf("%s: %q did not fail, only %q", dir, want, failed)
		}
	}
}
