package checkpoint

import (
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var kills = flag.Int("kills", 10, "how often TestKilledAtAnyMoment kills")

// Whoever of those at work is killed at whatever moment: the file is whole or is not
// there, it never takes the place of a whole one half-written, the job runs on unless it
// was to be ended and the file is whole, and nothing else is left.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	need(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	outcomes := map[string]int{}
	var j *job
	for i := range *kills {
		if j == nil {
			j = begin(t, "count")
		}
		signal := []syscall.Signal{0, syscall.SIGKILL, syscall.SIGTERM}[random.IntN(3)]
		victim := []string{"requester", "criu", "keeper"}[random.IntN(3)]
		outcome := killOnce(t, j, signal, victim, time.Duration(random.IntN(120))*time.Millisecond)
		outcomes[victim+" of signal "+strconv.Itoa(int(signal))+": "+outcome]++
		if t.Failed() {
			t.Fatalf("round %d: the %s was killed, of a checkpoint with signal %d: %s", i, victim, signal, outcome)
		}
		if !strings.HasSuffix(outcome, "runs on") {
			j.kill()
			j = nil
		}
	}
	for outcome, n := range outcomes {
		t.Logf("%4d times %s", n, outcome)
	}
}

// killOnce makes a checkpoint and kills one of those who make it, after a while.
func killOnce(t *testing.T, j *job, signal syscall.Signal, victim string, after time.Duration) (outcome string) {
	t.Helper()
	file := j.path("killed.ckpt")
	_ = os.Remove(file)
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(j.pid()), file, strconv.Itoa(int(signal)))
	cmd.Env = append(os.Environ(), roleVariable+"=writer", "GORACE=atexit_sleep_ms=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after) // the moment is what the test is about
	pid := cmd.Process.Pid
	if victim != "requester" {
		for _, p := range tree(pid) {
			// The keeper is the leader of a session, and CRIU the first of its children.
			if st, err := readProcess(p); err == nil && p != pid && (st.session == p) == (victim == "keeper") && st.parent != 1 {
				if victim == "keeper" || commandOf(p) == "criu" || strings.HasPrefix(commandOf(p), "ld-linux") {
					pid = p
					break
				}
			}
		}
	}
	if pid != cmd.Process.Pid || victim == "requester" {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = cmd.Wait()
	// What the requester has left goes on to its end by itself.
	await(t, "an empty directory", func() bool {
		left, _ := os.ReadDir(j.dir)
		for _, e := range left {
			if strings.HasPrefix(e.Name(), strings.TrimSuffix(boxPattern, "*")) {
				sweep(j.dir) // only what nobody has: the keeper was killed
				return false
			}
		}
		return true
	})
	outcome = "no file"
	if f, err := os.Open(file); err == nil {
		_, err := Inspect(f, true)
		_ = f.Close()
		if err != nil {
			t.Errorf("the file is there and not whole: %v", err)
		}
		outcome = "a whole file"
	}
	// Ended, or counting: never in between.
	n := j.number()
	ended := false
	await(t, "the job to end or count on", func() bool {
		st, err := readProcess(j.pid())
		ended = err != nil || st.state == 'Z'
		return ended || j.number() > n+1
	}, func() string {
		text, _ := os.ReadFile("/proc/" + strconv.Itoa(j.pid()) + "/status")
		return string(text)
	})
	if ended {
		if outcome == "no file" || signal == 0 {
			t.Errorf("the job has ended, and there is %s", outcome)
		}
		return outcome + ", and the job has ended"
	}
	return outcome + ", and the job runs on"
}

func commandOf(pid int) string {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return strings.TrimSpace(string(text))
}
