package main

import (
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/job"
)

func TestMain(m *testing.M) {
	freezer.AtGuard()
	job.AtGate()
	testscript.Main(m, map[string]func(){"freezethaw": main})
}

// TestScripts runs testdata/*.txtar. Whatever freezes does so in a pid namespace that
// the script makes with unshare(1), and that ends with it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, errors.New("unknown condition " + cond)
		},
	})
}
