package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/freezer"
)

// TestRehearsal: an order that is only to be looked at goes its way like all others, and
// what it names runs on.
func TestRehearsal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an executor takes root")
	}
	dir, err := os.MkdirTemp("/dev/shm", "rehearsal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv("FREEZER_RUN", dir+"/freezer")
	fx, err := freezer.NewExecutor(freezer.ExecutorConfig{Procs: true})
	if err != nil {
		t.Fatal(err)
	}
	x := executors{freezer: fx, closing: make(chan struct{})}
	sleeper := exec.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = sleeper.Process.Kill(), sleeper.Wait() })
	pid := strconv.Itoa(sleeper.Process.Pid)
	task := cluster.Task{
		Order: 1, Action: freezer.ActionFreeze + freezer.ActionDryRun,
		Spec: []byte(`{"targets":[{"kind":"processes","pids":[` + pid + `]}]}`), Timeout: time.Minute, By: "root@here",
	}
	p, err := x.Prepare(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.Freeze(t.Context())
	if want := "1 process: " + pid + " ("; err != nil || !strings.HasPrefix(text, want) {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
	p.Renew()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil || strings.Contains(string(status), "stopped") {
		t.Errorf("%v\n%s", err, status)
	}
	if p.Cause() != "" {
		t.Errorf("over because of %q", p.Cause())
	}
	for range 2 {
		if err := p.Thaw(); err != nil {
			t.Error(err)
		}
	}
	<-p.Done()
	if p.Cause() != freezer.CauseAsked || p.Err() != nil {
		t.Errorf("%q, %v", p.Cause(), p.Err())
	}
	task.Spec = []byte(`{"targets":[{"kind":"processes","pids":[1]}]}`)
	if p, err := x.Prepare(t.Context(), task); err == nil {
		t.Errorf("%+v", p)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}
