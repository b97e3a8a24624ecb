package systest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// checkpointKillsEnv is how many lockerds are killed while they write a job to a file: a
// few by default.
const checkpointKillsEnv = "SYSTEST_CHECKPOINTS_KILLED"

// proc is a process as proc_pid_stat(5) has it.
type proc struct {
	pid, parent int
	name, state string
	job         bool // it is the shell of the job, or was forked by it a moment ago
}

// reaps frees the numbers of what has ended of jobs, or of who was restoring them, until the
// test is over: we are the first process here, and they are to be restored under them again.
func (j *jobs) reaps() {
	stop, done := make(chan struct{}), make(chan struct{})
	j.t.Cleanup(func() { close(stop); <-done })
	go func() {
		defer close(done)
		for {
			for _, p := range j.procs() {
				switch p.name {
				case "lockerd", "lockctl", "lockersh": // others wait for those
					continue
				}
				if p.state == "Z" && p.parent == os.Getpid() {
					_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
}

// procs are all processes here.
func (j *jobs) procs() (all []proc) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		open, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
		fields := strings.Fields(string(text[end+1:]))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:open])))
		p := proc{pid: pid, name: string(text[open+1 : end]), state: fields[0]}
		p.parent, _ = strconv.Atoi(fields[1])
		argv, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		p.job = p.state != "Z" && string(argv) == "sh\x00job\x00"
		all = append(all, p)
	}
	return all
}

// running are the jobs that are there, be it that they stand still.
func (j *jobs) running() (list []proc) {
	j.t.Helper()
	job := map[int]bool{}
	all := j.procs()
	for _, p := range all {
		job[p.pid] = p.job
	}
	for _, p := range all {
		if p.job && !job[p.parent] {
			list = append(list, p)
		}
	}
	return list
}

// settled waits until a job either runs, and has its lock, or is on disk, and its lock is
// kept for it. It is neither gone nor there twice, nor does it stand still; nor does it go on while
// its lock can be had, though what was killed in a restart may be there for a moment yet.
func (j *jobs) settled(by *farm.Node, file string) (suspended bool) {
	j.t.Helper()
	kept := -1 // how far the job was when its lock was first seen to be kept
	await(j.t, 90*time.Second, "the job to run or be on disk", func() error {
		there := j.running()
		if len(there) > 1 {
			j.t.Fatalf("the job is there more than once: %+v", there)
		}
		h := j.hold(by)
		if h == nil {
			j.t.Fatalf("the lock is nobody's, and these are there: %+v", there)
		}
		_, err := os.Stat(file)
		suspended = h.Suspended != nil
		switch {
		case suspended && h.Suspended.Ending:
			return errors.New("the lock is suspended, and the job is not known to have ended")
		}
		if n := j.count(); suspended && kept < 0 {
			kept = n
		} else if suspended && n > kept {
			j.t.Fatalf("the lock can be had, and the job has gone on from %d to %d: %+v", kept, n, there)
		}
		switch {
		case suspended && len(there) > 0:
			return fmt.Errorf("the lock can be had, and these are there: %+v", there)
		case suspended && err != nil:
			j.t.Fatalf("the lock is suspended without a file: %v", err)
		case suspended:
			return nil
		case len(there) == 0:
			return fmt.Errorf("no job is there, and the lock is that of process %d", h.PID)
		case h.PID != there[0].pid || strings.ContainsAny(there[0].state, "Tt"):
			return fmt.Errorf("the lock is that of process %d, and there is %+v", h.PID, there[0])
		}
		return nil
	})
	if !suspended {
		j.counts()
	}
	return suspended
}

// carries waits until a node carries out orders.
func (j *jobs) carries(n, by *farm.Node) {
	j.t.Helper()
	await(j.t, time.Minute, n.Name+" to carry out orders", func() error {
		out, _ := j.once(by, lockctl, "checkpoint", "--node", n.Name, "--pid", "4194000", "--file", j.file("none"))
		if !strings.Contains(out, "there is no process") {
			return errors.New(out)
		}
		return nil
	})
}

// broken gives an order to a node and kills it with -9 at a random moment of that.
func (j *jobs) broken(n, by *farm.Node, most time.Duration, argv ...string) {
	j.t.Helper()
	j.carries(n, by)
	c := exec.CommandContext(limited(j.t, 2*time.Minute), argv[0], argv[1:]...)
	c.Dir, c.Env = j.dir, append(farm.Environ(), "LOCKERD_ADMIN="+by.Admin(), "LOCKERD_HTTP="+by.HTTP())
	var said strings.Builder
	c.Stdout, c.Stderr = &said, &said
	must(j.t, by.Within(c.Start))
	time.Sleep(time.Duration(rand.Int64N(int64(most)))) // the moment of the blow
	n.Kill()
	err := c.Wait()
	if c.ProcessState == nil || farm.ExitCode(c.ProcessState) > 128 {
		j.t.Fatalf("%v: %v: %s", argv, err, said.String())
	}
	must(j.t, n.Start())
	ready(j.t, j.farm)
}

// TestCheckpointsKilled kills nodes with -9 while they write a job to a file or start it
// again: afterwards the job runs, once, and has its lock, or it is on disk and its lock is
// kept, and then it can be started.
func TestCheckpointsKilled(t *testing.T) {
	needCRIU(t)
	rounds := number(checkpointKillsEnv, 3)
	if rounds > 3 {
		insideTime = 3 * time.Hour // by hand
	}
	if !inside(t, syscall.CLONE_NEWPID|syscall.CLONE_NEWNS|syscall.CLONE_NEWNET|syscall.CLONE_NEWUTS) {
		return
	}
	j := newJobs(t)
	j.reaps()
	nodes := j.farm.Nodes
	other := func(n *farm.Node) *farm.Node {
		for {
			if m := nodes[rand.IntN(len(nodes))]; m != n {
				return m
			}
		}
	}
	at := nodes[rand.IntN(len(nodes))]
	first := j.begin(at, "sh", "job")
	j.counts()
	j.want(at, lockersh, "--lock", "job1", "--for", strconv.Itoa(first.Process.Pid))

	// How long it takes when nobody is in the way.
	file := j.file("first.ckpt")
	save := func(n *farm.Node, file string) []string {
		return []string{lockctl, "checkpoint", "--node", n.Name, "--lock", "job1", "--suspend", "--file", file}
	}
	start := func(n *farm.Node, file string) []string {
		return []string{lockctl, "restart", "--node", n.Name, "--file", file}
	}
	j.carries(at, at)
	began := time.Now()
	j.want(at, save(at, file)...)
	saving := time.Since(began)
	if !j.settled(at, file) {
		t.Fatal("the lock is not suspended")
	}
	at = other(at)
	j.carries(at, at)
	began = time.Now()
	j.want(at, start(at, file)...)
	starting := time.Since(began)
	j.settled(at, file)

	outcome := map[string]int{}
	for i := range rounds {
		file := j.file(fmt.Sprintf("%d.ckpt", i))
		by := other(at)
		j.broken(at, by, saving*5/4, save(at, file)...)
		if !j.settled(by, file) {
			_, err := os.Stat(file)
			outcome[fmt.Sprintf("runs on, a file is there: %v", err == nil)]++
			if err == nil {
				// It is whole: what refuses it has read it.
				j.refused(by, "lives: it holds job1", start(by, file)...)
			}
			continue
		}
		outcome["suspended"]++
		at, by = by, other(by)
		saved := j.count()
		j.broken(at, by, starting*5/4, start(at, file)...)
		if j.settled(by, file) {
			outcome["restart failed"]++
			if n := j.count(); n != saved {
				t.Fatalf("a restart has failed, and the job has gone on from %d to %d", saved, n)
			}
			at = other(at)
			j.carries(at, by)
			j.want(by, start(at, file)...)
			if j.settled(by, file) {
				t.Fatal("a restart has been done, and the lock is suspended")
			}
		} else {
			outcome["restarted"]++
		}
		// What lives cannot be started anew, here or elsewhere.
		for _, n := range []*farm.Node{at, by} {
			j.refused(by, "is not kept for the job", start(n, file)...)
		}
	}
	t.Logf("%d rounds, a checkpoint takes %v and a restart %v: %v", rounds, saving.Round(time.Millisecond), starting.Round(time.Millisecond), outcome)

	must(t, os.WriteFile(j.file("stop"), nil, 0o644))
	j.free(at)
	await(t, 30*time.Second, "nothing to be left beside the files", func() error {
		left, err := os.ReadDir(j.dir)
		must(t, err)
		for _, e := range left {
			if name := e.Name(); !strings.HasSuffix(name, ".ckpt") && name != "job" && name != "out" && name != "said" && name != "stop" {
				return fmt.Errorf("there is %s", name)
			}
		}
		return nil
	})
}
