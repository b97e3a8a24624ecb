package systest

import (
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
	"github.com/lockerd/lockerd/systest/farm"
)

// process is one that does nothing but live.
type process struct {
	*exec.Cmd
	id   pidprobe.Process
	host string // that it says it is of
	// boot is empty if the name of the host decides who watches it; else it is of
	// every node in this pid namespace.
	boot string
	// unwatched leaves autounlock out of its LOCK.
	unwatched bool
}

// sleeper starts a process on the host of a node, and ends it with the test.
func sleeper(t *testing.T, at *farm.Node) *process {
	t.Helper()
	p, err := startSleeper(at)
	must(t, err)
	t.Cleanup(p.kill)
	return p
}

func startSleeper(at *farm.Node) (*process, error) {
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := at.Within(c.Start); err != nil {
		return nil, err
	}
	return identify(c, at)
}

func identify(c *exec.Cmd, at *farm.Node) (*process, error) {
	id, err := pidprobe.Lookup(int32(c.Process.Pid))
	if err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		return nil, err
	}
	p := &process{Cmd: c, id: id, host: at.Hostname()}
	if !at.Named() {
		p.boot = pidprobe.Here()
	}
	return p, nil
}

// kill ends the process with SIGKILL and reaps it. It may be called again.
func (p *process) kill() {
	_ = p.Process.Kill()
	_ = p.Wait() // killed, as it should be
}

// lock is the LOCK of the process, for a client of proto 2.
func (p *process) lock(user, lock string, block int, id int) string {
	autounlock := 1
	if p.unwatched {
		autounlock = 0
	}
	return fmt.Sprintf("user %s\nlocks %s\nblock %d\ntimeout 0\nautounlock %d\npid %d\nhostname %s\nstart %d\nboot %s\nrequest %s\nLOCK\n\n",
		user, lock, block, autounlock, p.id.PID, p.host, p.id.Start, p.boot, hex.EncodeToString([]byte(fmt.Sprintf("%016d", id))))
}

// hold takes a free lock for the process, on a connection of its own that ends.
func (p *process) hold(t *testing.T, addr, user, lock string) {
	t.Helper()
	w := hello(t, addr)
	must(t, w.send("%s", p.lock(user, lock, 0, 0)))
	must(t, w.grant(user, granted))
	must(t, w.Close())
}

// queued is a client that waits for a lock that owner holds.
func queued(t *testing.T, addr, user, lock, owner string) *wire {
	t.Helper()
	w := hello(t, addr)
	must(t, w.send("user %s\nlocks %s\nblock 1\ntimeout 0\nLOCK\n\n", user, lock))
	if got, _, err := w.waiting(2, granted); err != nil || got != owner {
		t.Fatalf("%s waits behind %q, %v; want %s", user, got, err, owner)
	}
	return w
}

// silent fails if anything has come for a client.
func (w *wire) silent(t *testing.T, who string) {
	t.Helper()
	must(t, w.SetReadDeadline(time.Now().Add(time.Millisecond)))
	if line, err := w.r.ReadString('\n'); line != "" || !isTimeout(err) {
		t.Fatalf("%s was told %q, %v; want nothing", who, line, err)
	}
}

func isTimeout(err error) bool {
	n, ok := err.(interface{ Timeout() bool })
	return ok && n.Timeout()
}

// tryLock asks for a lock without waiting, and returns who has it.
func tryLock(addr, user, lock string) (owner string, err error) {
	w, err := dial(addr)
	if err != nil {
		return "", err
	}
	defer w.Close()
	if err := w.send("user %s\nlocks %s\nblock 0\ntimeout 0\nLOCK\n\nEOF\n\n", user, lock); err != nil {
		return "", err
	}
	b, err := w.status(granted)
	if err == nil && b.fault != "" {
		err = fmt.Errorf("LOCK: %q", b.lines)
	}
	return b.owner, err
}

// heldBy fails if anybody else than owner has the lock, or could get it.
func heldBy(t *testing.T, addr, lock, owner string) {
	t.Helper()
	if got, err := tryLock(addr, "stranger", lock); err != nil || got != owner {
		t.Fatalf("%s is held by %q, %v; want %s", lock, got, err, owner)
	}
}

// command is a lockersh.
type command struct {
	*process
	stdin io.Closer
	log   strings.Builder
}

// drain is how long the output of a program is waited for after its end.
const drain = 10 * time.Second

// startLockersh runs a command under a lock, on the host of a node.
func startLockersh(t *testing.T, at *farm.Node, lock string, args ...string) *command {
	t.Helper()
	c := exec.Command(lockersh, append([]string{"--dhost", at.Host, "--port", fmt.Sprint(at.Port), "--lock", lock, "--"}, args...)...)
	c.Env = farm.Environ()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = drain // for a command that outlives it and keeps our pipes open
	sh := &command{process: &process{Cmd: c}}
	c.Stdout, c.Stderr = &sh.log, &sh.log
	var err error
	sh.stdin, err = c.StdinPipe()
	must(t, err)
	must(t, at.Within(c.Start))
	t.Cleanup(sh.kill)
	return sh
}

// awaitLock waits until the lock is taken, and returns its owner's name and the
// process it is taken for.
func (c *command) awaitLock(t *testing.T, at *farm.Node, lock string) (owner string, pid int) {
	t.Helper()
	await(t, granted, "lockersh to get its lock", func() error {
		text, err := ask(at.Client(), "LOCK_LIST", granted)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "lock" && f[1] == lock {
				owner = f[2]
				return nil
			}
		}
		return fmt.Errorf("%s is not held", lock)
	})
	parts := strings.Split(owner, "_") // host, number, user
	pid, err := strconv.Atoi(parts[max(0, len(parts)-2)])
	if err != nil {
		t.Fatalf("no process in %q", owner)
	}
	return owner, pid
}

// finish ends the standard input of the command, which is to end with it, and that
// lockersh had nothing to complain of.
func (c *command) finish(t *testing.T) {
	t.Helper()
	must(t, c.stdin.Close())
	if err := c.Wait(); err != nil || c.log.Len() > 0 {
		t.Fatalf("lockersh: %v, %q", err, c.log.String())
	}
}
