package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockerd/lockerd/job"
)

func TestMain(m *testing.M) {
	job.AtGate()
	testscript.Main(m, map[string]func(){"lockctl": main})
}

// TestScripts runs testdata/*.txtar, each with a node of its own that only says what it
// freezes: fakeFreezer.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			socket := filepath.Join(env.WorkDir, "admin")
			env.Setenv("LOCKERD_ADMIN", socket)
			return serveFreezer(socket, env.Defer)
		},
	})
}
