package farm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node is one lockerd, which may run, be dead, and run again on the same data.
type Node struct {
	Name string
	Address

	command []string // the program, and what it is started by
	args    []string
	env     []string // beside ours
	dir     string
	log     string
	host    *host // nil = this one
	named   bool  // its host has a name of its own
	files   uint64

	cmd  *exec.Cmd
	done chan struct{} // closed once the process has been reaped
}

// DataDir is where the node keeps its data.
func (n *Node) DataDir() string { return n.dir }

// Admin is the node's admin socket.
func (n *Node) Admin() string { return n.dir + ".admin" }

// Start runs the node. It does not wait until the node serves.
func (n *Node) Start() error {
	if n.Running() {
		return fmt.Errorf("start %s: it runs", n.Name)
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(n.command[0], slices.Concat(n.command[1:], n.args)...)
	cmd.Env = append(Environ(), n.env...)
	cmd.Stderr, cmd.Stdout = log, log
	// A terminal's Ctrl-C is for us: we end the nodes when we are done with them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := n.Within(cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	if n.files > 0 {
		err = unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n.files, Max: n.files}, nil)
	}
	done := make(chan struct{})
	n.cmd, n.done = cmd, done
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(done)
	}()
	if err != nil {
		n.Kill()
		return fmt.Errorf("start %s with %d open files: %w", n.Name, n.files, err)
	}
	return nil
}

// Within calls f on the node's host: in its network and under its name. Processes
// that f starts are there too. f must not switch goroutines.
func (n *Node) Within(f func() error) error {
	if n.host == nil && !n.named {
		return f()
	}
	return onOwnThread(func() error {
		if n.host != nil {
			if err := n.host.enter(); err != nil {
				return err
			}
		}
		if n.named {
			if err := rename(n.Hostname()); err != nil {
				return err
			}
		}
		return f()
	})
}

// Hostname is the name of the node's host: with [Options].Named one that no other
// node has, and no name server is asked for.
func (n *Node) Hostname() string {
	if n.named {
		return n.Name + ".test" // RFC 6761; lockerd takes a name with a dot as it is
	}
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// Named says whether the node's host has a name of its own.
func (n *Node) Named() bool { return n.named }

// Environ is our environment without what would change a node's options.
func Environ() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "LOCKERD_") && !strings.HasPrefix(name, "IPCLOCKER_") && name != "NOTIFY_SOCKET" {
			env = append(env, e)
		}
	}
	return env
}

// Running says whether the process has not ended yet.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// PID is that of the process, 0 if it was never started.
func (n *Node) PID() int {
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (n *Node) Kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill() // it has ended, if that fails
	<-n.done
}

// Signal sends the process a signal.
func (n *Node) Signal(s syscall.Signal) error {
	if err := n.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, n.Name, err)
	}
	return nil
}

// AwaitExit waits until the process ends, and returns its exit code, 128 and the
// number of the signal if one has ended it.
func (n *Node) AwaitExit(ctx context.Context) (int, error) {
	select {
	case <-n.done:
		return ExitCode(n.cmd.ProcessState), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s to end: %w", n.Name, context.Cause(ctx))
	}
}

// ExitCode is how a shell tells of the end of a process.
func ExitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// Log is what the node has written, over all its runs; the end of it if it is much.
func (n *Node) Log() string {
	const most = 64 << 10
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}

// Memory is the resident memory of the process and the most it ever was, in bytes:
// VmRSS and VmHWM of proc_pid_status(5).
func (n *Node) Memory() (now, most int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		return 0, 0, fmt.Errorf("memory of %s: %w", n.Name, err)
	}
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(string(line), ":")
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch {
		case err != nil:
		case key == "VmRSS":
			now = kb << 10
		case key == "VmHWM":
			most = kb << 10
		}
	}
	if now == 0 {
		return 0, 0, fmt.Errorf("memory of %s: it has ended", n.Name)
	}
	return now, most, nil
}

// Cut takes the node's host off the network without a word to anybody: its
// packets and those to it are dropped.
func (n *Node) Cut() error {
	if n.host == nil {
		return errors.New("a node without a host of its own cannot be cut off")
	}
	return n.host.cut()
}

// Heal ends Cut.
func (n *Node) Heal() error { return n.host.heal() }

// exitWait is how long a node that is told to stop may take.
const exitWait = 30 * time.Second

// Terminate sends SIGTERM and waits for the end.
func (n *Node) Terminate(ctx context.Context) (code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, exitWait)
	defer cancel()
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	return n.AwaitExit(ctx)
}
