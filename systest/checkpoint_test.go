package systest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/systest/farm"
)

// needCRIU skips a test where there is no CRIU, unless it has to be there.
func needCRIU(t *testing.T) {
	t.Helper()
	if os.Getenv("LOCKERD_CRIU") == "" {
		if os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
			t.Fatal("LOCKERD_CRIU is not set")
		}
		t.Skip("no CRIU: set LOCKERD_CRIU")
	}
}

// counting is a job that counts into a file. It ends with 7 when it is told to.
const counting = `n=0
while :; do
	n=$((n+1)); echo $n >>out
	[ -e stop ] && exit 7
	sleep 0.02
done
`

// jobs are nodes that save and restart what runs in a directory that all of them see.
type jobs struct {
	t    *testing.T
	farm *farm.Farm
	dir  string
}

func newJobs(t *testing.T) *jobs {
	ownProc(t)
	// What we were given may be of other mounts, where CRIU does not find it.
	must(t, unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC))
	j := &jobs{t: t, dir: t.TempDir()}
	j.farm = start(t, farm.Options{Servers: 3, Agents: 1, Hosts: true, Args: []string{"--executors", "checkpoint"}})
	ready(t, j.farm)
	must(t, os.WriteFile(j.file("job"), []byte(counting), 0o644))
	return j
}

func (j *jobs) file(name string) string { return filepath.Join(j.dir, name) }

// on runs a command on the host of a node, and returns what it says and its exit status. A
// node that was started a moment ago may have yet to meet the leader.
func (j *jobs) on(n *farm.Node, argv ...string) (out string, code int) {
	j.t.Helper()
	await(j.t, time.Minute, "the nodes to be in touch", func() error {
		if out, code = j.once(n, argv...); strings.Contains(out, "out of touch") || strings.Contains(out, "not in the cluster") {
			return errors.New(out)
		}
		return nil
	})
	return out, code
}

func (j *jobs) once(n *farm.Node, argv ...string) (string, int) {
	j.t.Helper()
	c := exec.CommandContext(limited(j.t, time.Minute), argv[0], argv[1:]...)
	c.Dir, c.Env = j.dir, append(farm.Environ(), "LOCKERD_ADMIN="+n.Admin(), "LOCKERD_HTTP="+n.HTTP(), "IPCLOCKER_HOST="+n.Client())
	var text []byte
	err := n.Within(func() (err error) {
		text, err = c.CombinedOutput()
		return err
	})
	if c.ProcessState == nil {
		j.t.Fatal(err)
	}
	return string(text), farm.ExitCode(c.ProcessState)
}

// want runs a command that has to succeed.
func (j *jobs) want(n *farm.Node, argv ...string) string {
	j.t.Helper()
	out, code := j.on(n, argv...)
	if code != 0 {
		j.t.Fatalf("%v on %s: exit status %d: %s", argv, n.Name, code, out)
	}
	return out
}

// refused runs a command that has to be refused in one line.
func (j *jobs) refused(n *farm.Node, word string, argv ...string) {
	j.t.Helper()
	out, code := j.on(n, argv...)
	if code != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, word) {
		j.t.Errorf("%v on %s: exit status %d: %s; want it refused: %s", argv, n.Name, code, out, word)
	}
}

// begin starts the job, in a session of its own as CRIU wants it, as a child of this test.
func (j *jobs) begin(n *farm.Node, argv ...string) *exec.Cmd {
	j.t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir, c.Env = j.dir, append(farm.Environ(), "IPCLOCKER_HOST="+n.Client())
	said, err := os.Create(j.file("said"))
	must(j.t, err)
	defer said.Close()
	c.Stdout, c.Stderr = said, said
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(j.t, n.Within(c.Start))
	j.t.Cleanup(func() { _ = c.Process.Kill() })
	return c
}

// count is how far the job is.
func (j *jobs) count() int {
	text, _ := os.ReadFile(j.file("out"))
	lines := strings.Fields(string(text))
	if len(lines) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(lines[len(lines)-1])
	return n
}

// counts waits until the job has gone on.
func (j *jobs) counts() {
	j.t.Helper()
	from := j.count()
	await(j.t, 30*time.Second, "the job to go on", func() error {
		if n := j.count(); n <= from {
			return fmt.Errorf("it is at %d", n)
		}
		return nil
	})
}

type heldLock struct {
	Locks     []string `json:"locks"`
	Fence     uint64   `json:"fence"`
	Host      string   `json:"host"`
	PID       int      `json:"pid"`
	Suspended *struct {
		By      string `json:"by"`
		Context string `json:"context"`
		Ending  bool   `json:"ending"`
	} `json:"suspended"`
}

// hold is who has the lock; nil for nobody.
func (j *jobs) hold(n *farm.Node) *heldLock {
	j.t.Helper()
	var l struct {
		Holds []heldLock `json:"holds"`
	}
	must(j.t, json.Unmarshal([]byte(j.want(n, lockctl, "locks", "--lock", "job1", "--json")), &l))
	if len(l.Holds) == 0 {
		return nil
	}
	return &l.Holds[0]
}

// free waits until nobody has the lock.
func (j *jobs) free(n *farm.Node) {
	j.t.Helper()
	await(j.t, 20*time.Second, "the lock to be free", func() error {
		if h := j.hold(n); h != nil {
			return fmt.Errorf("it has fence %d", h.Fence)
		}
		return nil
	})
}

// TestASuspendedJob puts a job with its lock on disk, restarts the nodes, and goes on
// with it elsewhere.
func TestASuspendedJob(t *testing.T) {
	needCRIU(t)
	if !inside(t, syscall.CLONE_NEWPID|syscall.CLONE_NEWNS|syscall.CLONE_NEWNET|syscall.CLONE_NEWUTS) {
		return
	}
	j := newJobs(t)
	a, b, c := j.farm.Nodes[0], j.farm.Nodes[3], j.farm.Nodes[2] // b is an agent
	file := j.file("job.ckpt")
	job := j.begin(a, "sh", "job")
	pid := strconv.Itoa(job.Process.Pid)
	j.counts()
	j.want(a, lockersh, "--lock", "job1", "--for", pid)
	first := j.hold(a)

	// What cannot be is refused, and the job runs on.
	j.refused(b, "nobody holds job2", lockctl, "checkpoint", "--node", a.Name, "--lock", "job2", "--file", file)
	j.refused(b, "there is no process", lockctl, "checkpoint", "--node", a.Name, "--pid", "4194000", "--file", file)
	j.refused(b, "there is no directory", lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--file", "/nowhere/f")
	j.counts()

	j.refused(b, "not done within 1 ms: "+a.Name+"; --timeout gives it more",
		lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--timeout", "1ms", "--file", j.file("late.ckpt"))
	j.counts()

	// It can be saved as it runs on. From such a file it cannot be restarted beside itself.
	j.want(b, lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--zstd", "--file", j.file("early.ckpt"))
	j.counts()
	j.refused(b, "lives: it holds job1, with fence 1", lockctl, "restart", "--node", b.Name, "--file", j.file("early.ckpt"))

	// Suspended, its lock is nobody's, whatever becomes of the nodes.
	j.want(c, lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--suspend", "--file", file)
	ended(job)
	stood := j.count()
	check := func(n *farm.Node) {
		t.Helper()
		h := j.hold(n)
		if h == nil || h.Fence != first.Fence || h.Suspended == nil || h.Suspended.Context != file || !strings.HasPrefix(h.Suspended.By, "root@") {
			t.Fatalf("the lock on %s: %+v", n.Name, h)
		}
	}
	check(b)
	if out, code := j.on(c, lockersh, "--lock", "job1", "--try", "--", "true"); code != 75 {
		t.Errorf("the suspended lock can be had: %d: %s", code, out)
	}
	j.refused(b, "is suspended already", lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--file", j.file("x"))
	for _, n := range j.farm.Nodes {
		n.Kill()
		_, _ = n.AwaitExit(limited(t, 10*time.Second))
		must(t, n.Start())
		ready(t, j.farm)
	}
	check(a)
	if n := j.count(); n != stood {
		t.Errorf("the job has gone from %d to %d on disk", stood, n)
	}

	// It goes on elsewhere, once, under a new fence.
	j.refused(a, "job1 is kept for the job in "+file+", and "+j.file("early.ckpt")+" is another checkpoint of it",
		lockctl, "restart", "--node", b.Name, "--file", j.file("early.ckpt"))
	check(a)
	j.refused(a, "had the lock job1, and not job2", lockctl, "restart", "--node", b.Name, "--file", file, "--lock", "job2")
	j.want(a, lockctl, "restart", "--node", b.Name, "--file", file, "--lock", "job1")
	h := j.hold(c)
	if h == nil || h.Suspended != nil || h.Fence <= first.Fence || h.Host == first.Host && b.Named() {
		t.Errorf("the lock of the restarted job: %+v", h)
	}
	j.counts()
	for _, n := range []*farm.Node{a, b, c} {
		j.refused(a, "is not kept for the job", lockctl, "restart", "--node", n.Name, "--file", file)
	}

	// The node goes and comes, and the job goes on with its lock.
	b.Kill()
	_, _ = b.AwaitExit(limited(t, 10*time.Second))
	j.counts()
	must(t, b.Start())
	ready(t, j.farm)
	if again := j.hold(c); again == nil || again.Fence != h.Fence {
		t.Errorf("the lock after its node was killed: %+v, and before %+v", again, h)
	}
	j.counts()

	// It can be suspended again, and ends with its lock.
	j.want(c, lockctl, "checkpoint", "--node", b.Name, "--lock", "job1", "--suspend", "--file", j.file("second.ckpt"))
	j.refused(a, "is not kept for the job", lockctl, "restart", "--node", c.Name, "--file", file)
	must(t, os.Chmod(j.file("second.ckpt"), 0o666))
	j.refused(a, "or say --trust", lockctl, "restart", "--node", c.Name, "--no-restore-pid", "--file", j.file("second.ckpt"))
	j.want(a, lockctl, "restart", "--node", c.Name, "--no-restore-pid", "--trust", "--file", j.file("second.ckpt"))
	if last := j.hold(a); last == nil || last.Fence <= h.Fence {
		t.Errorf("the lock of the job restarted twice: %+v", last)
	}
	j.counts()
	must(t, os.WriteFile(j.file("stop"), nil, 0o644))
	j.free(a)
	whole(t, j.file("out"))

	// A command that has a connection of lockersh is refused, and told what helps.
	must(t, os.Remove(j.file("stop")))
	must(t, os.Remove(j.file("out")))
	job = j.begin(a, lockersh, "--lock", "job1", "--", "sh", "job")
	j.counts()
	j.refused(b, "start it with lockersh --checkpointable", lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--suspend", "--file", j.file("sh.ckpt"))
	j.counts()
	must(t, os.WriteFile(j.file("stop"), nil, 0o644))
	ended(job)

	// A lockersh whose command is suspended says so, and leaves the lock alone.
	must(t, os.Remove(j.file("stop")))
	must(t, os.Remove(j.file("out")))
	job = j.begin(a, lockersh, "--lock", "job1", "--checkpointable", "--", "sh", "job")
	j.counts()
	j.want(b, lockctl, "checkpoint", "--node", a.Name, "--lock", "job1", "--suspend", "--file", j.file("sh.ckpt"))
	ended(job)
	said, _ := os.ReadFile(j.file("said"))
	if code := farm.ExitCode(job.ProcessState); code != 79 || !strings.Contains(string(said), "has been put on disk, and the lock job1 is kept for it") {
		t.Errorf("lockersh ended with %d: %s", code, said)
	}
	if h := j.hold(b); h == nil || h.Suspended == nil {
		t.Errorf("the lock of a suspended lockersh: %+v", h)
	}
	j.want(c, lockctl, "restart", "--node", b.Name, "--no-restore-pid", "--file", j.file("sh.ckpt"))
	j.counts()
	must(t, os.WriteFile(j.file("stop"), nil, 0o644))
	j.free(a)
	whole(t, j.file("out"))

	// Broken, it is nobody's: the job cannot come back.
	must(t, os.Remove(j.file("stop")))
	must(t, os.Remove(j.file("out")))
	job = j.begin(a, "sh", "job")
	j.counts()
	j.want(a, lockersh, "--lock", "job1", "--for", strconv.Itoa(job.Process.Pid))
	j.want(c, lockctl, "checkpoint", "--node", a.Name, "--pid", strconv.Itoa(job.Process.Pid), "--suspend", "--file", j.file("third.ckpt"))
	ended(job)
	j.want(b, lockctl, "break", "job1")
	j.free(a)
	j.refused(a, "is not kept for the job", lockctl, "restart", "--node", a.Name, "--file", j.file("third.ckpt"))
}

// ended waits for a job, and for what it has left to us, who are the first process here:
// their numbers are to be free.
func ended(job *exec.Cmd) {
	_ = job.Wait()
	for err := error(nil); err != syscall.ECHILD; {
		_, err = syscall.Wait4(-job.Process.Pid, nil, 0, nil)
	}
}

// whole fails unless a file counts without a gap, and nothing twice.
func whole(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	for i, line := range strings.Fields(string(text)) {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d of what the job has written is %q", i+1, line)
		}
	}
}
