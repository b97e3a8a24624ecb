package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/job"
)

func TestMain(m *testing.M) {
	job.AtGate()
	checkpoint.AtStage()
	testscript.Main(m, map[string]func(){"lockctl": main})
}

// TestScripts runs testdata/*.txtar, each with a node of its own that only says what it
// freezes: fakeFreezer.
//
// What is under [criu] takes root and CRIU, and fails without them only if
// LOCKERD_REQUIRE_CRIU is set.
func TestScripts(t *testing.T) {
	criu, missing := checkpoint.Find(t.Context())
	if os.Geteuid() != 0 {
		missing = checkpoint.ErrNoRight
	}
	if missing != nil && os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		t.Fatal(missing)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Condition: func(cond string) (bool, error) {
			if cond == "criu" {
				return missing == nil, nil
			}
			return false, errors.New("unknown condition " + cond)
		},
		Setup: func(env *testscript.Env) error {
			if criu != nil { // it may be below a home that scripts have not
				env.Setenv("LOCKERD_CRIU", criu.Path)
			}
			socket := filepath.Join(env.WorkDir, "admin")
			env.Setenv("LOCKERD_ADMIN", socket)
			return serveFreezer(socket, env.Defer)
		},
	})
}
