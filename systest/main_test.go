package systest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// The programs that are tested, built as their users build them.
var lockerd, lockersh, lockctl string

func TestMain(m *testing.M) {
	if os.Getenv(rescueEnv) != "" {
		os.Exit(rescue())
	}
	os.Exit(func() int {
		if dir := os.Getenv(programsEnv); dir != "" {
			findPrograms(dir)
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "systest-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		findPrograms(dir)
		out, err := exec.Command("go", "build", "-o", dir+"/", "../cmd/lockerd", "../cmd/lockersh", "../cmd/lockctl").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func findPrograms(dir string) {
	lockerd, lockersh, lockctl = filepath.Join(dir, "lockerd"), filepath.Join(dir, "lockersh"), filepath.Join(dir, "lockctl")
}

// start runs a cluster until the test ends. When the test fails, the nodes' last
// words are part of its log.
func start(t *testing.T, o farm.Options) *farm.Farm {
	t.Helper()
	o.Binary = lockerd
	f, err := farm.New(limited(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range f.Nodes {
				log := n.Log()
				t.Logf("--- %s\n%s", n.Name, log[max(0, len(log)-6<<10):])
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// limited is the test's context with a bound.
func limited(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("it took more than %v", d))
	t.Cleanup(cancel)
	return ctx
}

func leader(t *testing.T, f *farm.Farm) *farm.Node {
	t.Helper()
	n, err := f.AwaitLeader(limited(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ready(t *testing.T, f *farm.Farm) {
	t.Helper()
	if err := f.AwaitReady(limited(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, most time.Duration, what string, check func() error) {
	t.Helper()
	if err := farm.Await(limited(t, most), what, check); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
