package workload

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// lifetime is how long a child would live by itself: longer than any run.
const lifetime = "86400"

// freedWithin bounds the time from a process's death to the news that its hold
// has ended: a fault may last five seconds, an election and a dead link add to it.
const freedWithin = 25 * time.Second

// holdOfChild takes a lock for a process, which is killed in half of the cases: that
// is to end the hold, and nothing else is.
func (c *Client) holdOfChild(ctx context.Context, a gen.Action) error {
	child := exec.Command("sleep", lifetime)
	if err := child.Start(); err != nil {
		return fmt.Errorf("start a process to hold a lock: %w", err)
	}
	// A hold of a dead process cannot end with it twice: each has a user of its own.
	c.renew()
	note := history.Op{Process: c.process, Type: history.Info, F: history.Death, Locks: names(a.Locks), Owner: c.user}
	kill := func() {
		c.env.Rec.Add(note)
		_ = child.Process.Kill()
		_ = child.Wait() // it was killed
	}
	o := c.options(c.env.names(a.Locks))
	o.Try, o.PID, o.Autounlock = a.Try, child.Process.Pid, true
	var h *Hold
	var err error
	if c.env.Far != nil {
		h, err = c.lockOriginal(o)
	} else {
		h, err = c.acquire(o)
	}
	if h == nil {
		kill()
		return err
	}
	_ = pause(ctx, a.Hold)
	if a.Roll < 0.5 {
		c.release(h)
		kill()
		return nil
	}
	kill()
	if h.locker == nil {
		return c.freed(child.Process.Pid, h, a.Roll >= 0.75)
	}
	if a.Roll >= 0.75 {
		// Another process under the number of the dead one is not that one.
		defer c.env.reuse(child.Process.Pid)()
	}
	ended := make(chan struct{})
	go func() { h.gone.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(freedWithin):
		// Close below lets it be: what is left at the end of the run is a finding.
	}
	_ = h.locker.Close()
	<-ended
	return nil
}

const (
	// reusedFor is how long a dead process's number is another's, for which pidstatd,
	// that knows nothing but numbers, takes it then.
	reusedFor = time.Second

	lookEvery = 250 * time.Millisecond
)

// freed waits until a hold has ended with its process, whose owner is told nothing.
func (c *Client) freed(pid int, h *Hold, reused bool) error {
	if reused {
		end := c.env.reuse(pid)
		time.Sleep(reusedFor)
		end()
	}
	user, locks := c.user, h.locks
	for end := time.Now().Add(freedWithin); time.Now().Before(end); time.Sleep(lookEvery) {
		// What is left at the end of the run is a finding.
		if owner, err := c.readOnce(locks[0], h.proto); err == nil && owner != user {
			return nil
		}
	}
	if _, err := os.Stat(fmt.Sprint("/proc/", pid)); err == nil {
		// A thread of somebody else has got the number meanwhile. Nothing that knows
		// numbers alone could see that the process is dead.
		c.env.Rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: history.Reuse, Value: strconv.Itoa(pid)})
		c.env.Abandon(user)
	}
	return nil
}

// lastPID is the number that the next process of this namespace comes after; see
// proc_sys_kernel(5). It is the sandbox's own.
const lastPID = "/proc/sys/kernel/ns_last_pid"

// reuseTries bounds the attempts to be given a number: somebody else may be quicker.
const reuseTries = 20

// reuse starts a process under the number of one that has ended. The function
// returned ends it.
func (e *Env) reuse(pid int) (end func()) {
	e.reusing.Lock()
	defer e.reusing.Unlock()
	if b, err := os.ReadFile(lastPID); err == nil {
		// The numbers in between are of other dead ones: nobody is to get them for good.
		defer os.WriteFile(lastPID, bytes.TrimSpace(b), 0o644)
	}
	for range reuseTries {
		if os.WriteFile(lastPID, []byte(strconv.Itoa(pid-1)), 0o644) != nil {
			break
		}
		cmd := exec.Command("sleep", lifetime)
		if cmd.Start() != nil {
			break
		}
		end := func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
		if cmd.Process.Pid == pid {
			e.Rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: history.Reuse, Value: strconv.Itoa(pid)})
			return end
		}
		end()
	}
	return func() {}
}
