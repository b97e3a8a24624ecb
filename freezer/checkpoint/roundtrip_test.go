package checkpoint

import (
	"context"
	"errors"
	"flag"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestARestartedLoopCountsOn(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count", "200")
	file, r := j.save(t)
	before := j.lines()
	job := restart(t, Plan{File: file})
	status, err := job.Wait()
	if err != nil || status.ExitStatus() != 7 {
		t.Fatalf("it ended with %v, %v", status, err)
	}
	after := j.lines()
	if len(after) != 200 || strings.Join(after[:len(before)], "\n") != strings.Join(before, "\n") {
		t.Errorf("it counted %d lines before and %d in the end, not 200:\n%s", len(before), len(after), strings.Join(after, "\n"))
	}
	if r.Manifest.Root != j.pid() || len(r.Manifest.Processes) != 1 || r.Manifest.Processes[0].Start == 0 {
		t.Errorf("the manifest has %+v", r.Manifest.Processes)
	}
}

func TestACheckpointedJobRunsOn(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count")
	file, r := j.save(t, func(o *Order) { o.Signal = 0 })
	j.goesOn(t)
	if r.Pause <= 0 {
		t.Error("the report does not know how long it stood still")
	}
	j.kill()
	at := j.number()
	restart(t, Plan{File: file})
	j.await(t, "the restarted job to count", func() bool { return j.number() != at })
}

var roundTrip = flag.Int("roundtrip", 100, "megabytes of the process of TestMemoryComesBack")

func TestMemoryComesBack(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "sums", strconv.Itoa(*roundTrip))
	file, r := j.save(t)
	if r.Size < int64(*roundTrip)<<20 {
		t.Errorf("random memory of %d MB is in a file of %d bytes", *roundTrip, r.Size)
	}
	restart(t, Plan{File: file})
	j.goesOn(t)
	seen := map[string]bool{}
	for _, line := range j.lines() {
		seen[strings.Fields(line)[1]] = true
	}
	if len(seen) != 1 {
		t.Errorf("its sum was one of %v", seen)
	}
}

func TestPreflight(t *testing.T) {
	if err := need(t).Preflight(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestASecondRestartIsTemporary(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count")
	file, _ := j.save(t)
	restart(t, Plan{File: file})
	_, err := Restart(context.Background(), Plan{File: file})
	var e *Error
	if !errors.As(err, &e) || e.Class != Temp || !errors.Is(err, syscall.EBUSY) {
		t.Errorf("the second restart: %v", err)
	}
	j.goesOn(t)
}

func TestNewPIDs(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count", "300")
	file, _ := j.save(t)
	a, b := restart(t, Plan{File: file, NewPIDs: true}), restart(t, Plan{File: file, NewPIDs: true})
	for _, job := range []*Job{a, b} {
		if status, err := job.Wait(); err != nil || status.ExitStatus() != 7 {
			t.Errorf("it ended with %v, %v", status, err)
		}
	}
	if n := len(j.lines()); n < 301 {
		t.Errorf("two of them wrote %d lines in all", n)
	}
	_ = os.Remove(file)
}

// A job for which a lock is kept goes on with the lock, or when somebody says that it need not.
func TestASuspendedJobTakesItsLock(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count")
	file, _ := j.save(t, func(o *Order) {
		o.Locks, o.Suspended = []Lock{{Name: "job1", Fence: 7}}, true
	})
	_, err := Restart(context.Background(), Plan{File: file, CRIU: need(t)})
	var e *Error
	if !errors.Is(err, ErrSuspended) || !errors.As(err, &e) || e.Errno != syscall.ENOLCK || !strings.Contains(err.Error(), "job1 was kept for it") {
		t.Fatalf("the error is %v", err)
	}
	noBoxes(t, j.dir)
	restart(t, Plan{File: file, Suspended: true})
	j.goesOn(t)
}
