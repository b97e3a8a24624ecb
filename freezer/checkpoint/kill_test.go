package checkpoint

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var kills = flag.Int("kills", 10, "how often TestKilledAtAnyMoment kills")

// strikes is how a series of kills of one of those at work went.
type strikes struct {
	span   time.Duration // from its start, within which it is killed; longer after a kill, shorter after a miss
	mid    int           // killed before the file was there
	after  int           // killed after that
	missed int           // it had ended before
}

// Whoever of those at work is killed at whatever moment: the file is whole and restartable, or
// is not there, it never takes the place of a whole one half-written, the job runs on unless it
// was to be ended and the file is whole, and nothing else is left.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	need(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	victims := []string{"requester", "criu", "keeper"}
	struck := map[string]*strikes{}
	for _, v := range victims {
		struck[v] = &strikes{span: 150 * time.Millisecond}
	}
	outcomes := map[string]int{}
	var j *job
	for i := range *kills {
		if j == nil {
			j = begin(t, "count")
		}
		signal := []syscall.Signal{0, syscall.SIGKILL, syscall.SIGTERM}[random.IntN(3)]
		victim := victims[i%len(victims)]
		s := struck[victim]
		outcome, again := killOnce(t, j, signal, victim, s, time.Duration(random.Int64N(int64(s.span))))
		outcomes[victim+" of signal "+strconv.Itoa(int(signal))+": "+outcome]++
		if t.Failed() {
			t.Fatalf("round %d: the %s was killed, of a checkpoint with signal %d: %s", i, victim, signal, outcome)
		}
		if !again {
			j = nil
		}
	}
	if j != nil {
		j.kill()
	}
	for outcome, n := range outcomes {
		t.Logf("%4d times %s", n, outcome)
	}
	for v, s := range struck {
		t.Logf("%s: killed %d times before the file was there, and %d times after; it had ended before %d more", v, s.mid, s.after, s.missed)
		if *kills >= 30 && s.mid == 0 {
			t.Errorf("%s: it was never killed before the file was there: that proves nothing", v)
		}
	}
}

// victimOf finds the one to be killed among the descendants of a requester: the keeper is the leader
// of a session, and CRIU the first of its children. It returns a pidfd, and -1 if there is none yet.
func victimOf(requester int, victim string) int {
	for _, pid := range tree(requester) {
		st, err := readProcess(pid)
		if err != nil || st.parent == 1 {
			continue
		}
		is := pid == requester
		switch victim {
		case "keeper":
			is = pid != requester && st.session == pid
		case "criu":
			is = pid != requester && st.session != pid && (nameOf(pid) == "criu" || strings.HasPrefix(nameOf(pid), "ld-linux"))
		}
		if !is {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			return fd
		}
	}
	return -1
}

// killOnce makes a checkpoint and kills one of those who make it, after a while. It says whether
// the job can be taken for another round.
func killOnce(t *testing.T, j *job, signal syscall.Signal, victim string, s *strikes, after time.Duration) (outcome string, again bool) {
	t.Helper()
	file := j.path("killed.ckpt")
	_ = os.Remove(file)
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(j.pid()), file, strconv.Itoa(int(signal)))
	cmd.Env = append(os.Environ(), roleVariable+"=writer", "GORACE=atexit_sleep_ms=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	self, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := func(fd int) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	}
	fd := -1
	for fd < 0 && !ended(self) {
		fd = victimOf(cmd.Process.Pid, victim)
	}
	time.Sleep(after) // the moment is what the test is about
	_, err = os.Stat(file)
	there := err == nil
	switch {
	case fd < 0 || ended(fd) || unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0) != nil:
		s.missed++
		s.span = max(s.span*3/4, 10*time.Millisecond)
	case there:
		s.after++
	default:
		s.mid++
		s.span = s.span * 9 / 8
	}
	for _, fd := range []int{fd, self} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	_ = cmd.Wait()
	// What the requester has left goes on to its end by itself.
	await(t, "an empty directory", func() bool {
		left, _ := os.ReadDir(j.dir)
		for _, e := range left {
			if strings.HasPrefix(e.Name(), strings.TrimSuffix(boxPattern, "*")) {
				Sweep(j.dir) // only what nobody has: the keeper was killed
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
	over := false
	await(t, "the job to end or count on", func() bool {
		st, err := readProcess(j.pid())
		over = err != nil || st.state == 'Z'
		return over || j.number() > n+1
	}, func() string {
		text, _ := os.ReadFile("/proc/" + strconv.Itoa(j.pid()) + "/status")
		return string(text)
	})
	// CRIU itself has borrowed the job's registers: nobody else can put them back.
	if over && (outcome == "no file" || signal == 0) && victim != "criu" {
		_ = j.cmd.Wait()
		t.Errorf("the job has ended (%v), and there is %s", j.cmd.ProcessState, outcome)
	}
	if outcome != "no file" && !t.Failed() {
		j.kill()
		at := j.number()
		var r *Job
		await(t, "numbers that are free", func() (is bool) {
			var err error
			r, err = Restart(context.Background(), Plan{File: file, CRIU: need(t)})
			var e *Error
			if err != nil && !(errors.As(err, &e) && e.Class == Temp) { // as where others take numbers
				t.Fatalf("restart %s: %v", outcome, err)
			}
			return err == nil
		})
		j.await(t, "the restarted job to count", func() bool { return j.number() != at })
		_ = r.Signal(syscall.SIGKILL)
		_, _ = r.Wait()
		again = false
	} else {
		again = !over
	}
	if over {
		return outcome + ", and the job has ended", again
	}
	return outcome + ", and the job runs on", again
}
