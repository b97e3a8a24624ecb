//go:build jepsen

package versus

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/run"
)

func TestMain(m *testing.M) {
	os.Exit(sandboxed(m))
}

func sandboxed(m *testing.M) int {
	commands := map[string]func([]string) error{IncrementCommand: Increment, HoldCommand: Hold, StampCommand: Stamp}
	if len(os.Args) > 1 && commands[os.Args[1]] != nil { // lock clients run us
		if err := commands[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if run.Inside() {
		if _, _, err := run.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	code, err := run.Sandbox(os.Stdout, os.Args[1:]...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// prepared builds the product. There is no etcd.
func prepared(t *testing.T) Programs {
	t.Helper()
	if !run.Inside() {
		t.Skip("namespaces are root's")
	}
	if err := Prepare(); err != nil {
		t.Fatal(err)
	}
	p := Programs{Dir: t.TempDir()}
	p.Lockerd, p.Lockersh = filepath.Join(p.Dir, "lockerd"), filepath.Join(p.Dir, "lockersh")
	out, err := exec.Command("go", "build", "-o", p.Dir, "../../cmd/lockerd", "../../cmd/lockersh").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if p.Self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	return p
}

// patience bounds a comparison of a few seconds, however busy the machine.
const patience = 8 * time.Minute

// Under lockersh no update is lost, whoever is stopped; without a lock many are, and
// the same count shows it.
func TestCounterWithAndWithoutALock(t *testing.T) {
	c := Counter{Processes: 4, Times: 4, Pauses: 1, TTL: 2 * time.Second, Pause: 2500 * time.Millisecond}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := c.Run(ctx, prepared(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Print(os.Stdout); err != nil {
		t.Error(err)
	}
	if v, why := r.Verdict(); v != Pass {
		t.Errorf("verdict %v: %s", v, why)
	}
	product, control, _ := r.find()
	if product.Paused.Seconds < c.Pause.Seconds() {
		t.Errorf("with a pause of %v the run took %.1f s: nobody was stopped", c.Pause, product.Paused.Seconds)
	}
	// Whoever was stopped has written over what all others did meanwhile, and those are most.
	if control.Paused.Lost == 0 {
		t.Errorf("without a lock and with a pause nothing was lost: %+v", control.Paused)
	}
	if last := r.Columns[len(r.Columns)-1]; last.Missing != notInstalled {
		t.Errorf("etcd: %+v", last)
	}
}

func TestDeathsUnderLockersh(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := Death{Runs: 2, TTLs: []time.Duration{2 * time.Second}}.Run(ctx, prepared(t))
	if err != nil {
		t.Fatal(err)
	}
	if v, why := r.Verdict(); v != Pass {
		t.Errorf("verdict %v: %s", v, why)
	}
	for i, row := range r.Systems[0].Rows {
		if row.Runs != 2 || row.P50 <= 0 || row.Max > 2000 {
			t.Errorf("%s killed: %+v: the next one has to come at once", victims[i].name, row)
		}
	}
}
