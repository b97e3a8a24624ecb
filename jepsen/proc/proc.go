package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Proc is a program with its arguments, and its process if it runs.
type Proc struct {
	Name string
	Path string
	Args []string
	Env  []string // beside ours
	Log  string   // a file that all its processes append to

	mu      sync.Mutex
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process has been reaped
	excused bool          // this process may end
	ended   []string      // how processes ended that might not
}

// Start runs the program within what enter makes of its argument.
func (p *Proc) Start(enter func(func() error) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return fmt.Errorf("start %s: it runs", p.Name)
	}
	p.lookBack()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Env = append(environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := enter(cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.excused = cmd, done, false
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(done)
	}()
	return nil
}

// environ is our environment without what would change a node's options.
func environ() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "LOCKERD_") && !strings.HasPrefix(name, "IPCLOCKER_") && name != "NOTIFY_SOCKET" {
			env = append(env, e)
		}
	}
	return env
}

func (p *Proc) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Running says whether the process has not ended yet.
func (p *Proc) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// Pid is the number of the process that was started last; 0 before.
func (p *Proc) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Ended is closed when the process that was started last has ended.
func (p *Proc) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// Exit is how the last process ended, in words; empty if it runs or never ran.
func (p *Proc) Exit() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.running() {
		return ""
	}
	return p.cmd.ProcessState.String()
}

// lookBack notes how the last process ended, if nobody expected it to.
func (p *Proc) lookBack() {
	if p.cmd == nil || p.running() || p.excused {
		return
	}
	p.ended = append(p.ended, fmt.Sprintf("%s ended by itself: %v", p.Name, p.cmd.ProcessState))
	p.excused = true
}

// Excuse says that the present process may end.
func (p *Proc) Excuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lookBack()
	p.excused = true
}

// EndedAlone lists how processes ended that nobody had excused.
func (p *Proc) EndedAlone() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lookBack()
	return p.ended
}

// Signal sends the process a signal.
func (p *Proc) Signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return fmt.Errorf("send %v to %s: it does not run", s, p.Name)
	}
	return p.cmd.Process.Signal(s)
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Proc) Kill() {
	p.Excuse()
	if p.Signal(syscall.SIGKILL) == nil {
		<-p.Ended()
	}
}

// exitWait is how long a process that is told to stop may take.
const exitWait = 15 * time.Second

// Terminate sends SIGTERM and waits for the end, and kills what does not end. A
// process that has ended is none to stop, here and below.
func (p *Proc) Terminate() error {
	p.Excuse()
	if !p.Running() {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && p.Running() {
		return err
	}
	select {
	case <-p.Ended():
		return nil
	case <-time.After(exitWait):
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.Name, exitWait)
	}
}

// stopWait is how long a signal may take to stop all threads of a process.
const stopWait = 5 * time.Second

// Stop sends SIGSTOP and waits until no thread of the process runs any more. A
// thread that waits in the kernel will not come back from there.
func (p *Proc) Stop() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil && p.Running() {
		return err
	}
	if !p.Running() {
		return nil
	}
	pid := p.Pid()
	for end := time.Now().Add(stopWait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if Stopped(pid) {
			return nil
		}
	}
	return fmt.Errorf("%s did not stop within %v", p.Name, stopWait)
}

// Continue ends Stop.
func (p *Proc) Continue() error {
	if err := p.Signal(syscall.SIGCONT); err != nil && p.Running() {
		return err
	}
	return nil
}

// Stopped says whether no thread of a process runs or could. It looks at the state of
// each: field 3 of proc_pid_stat(5).
func Stopped(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		s := string(b)
		i := strings.LastIndex(s, ") ")
		if err != nil || i < 0 || !strings.ContainsAny(s[i+2:i+3], "TDZX") {
			return false
		}
	}
	return true
}
