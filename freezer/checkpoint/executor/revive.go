package executor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// revive prepares a restart.
func (x *Executor) revive(ctx context.Context, order uint64, s RestartSpec, locks Locks) (run func(context.Context) (string, error), err error) {
	if err := checkFile(s.File); err != nil {
		return nil, err
	}
	if len(s.Relocations) > checkpoint.MaxRelocations {
		return nil, fmt.Errorf("there are %d relocations, and at most %d are possible", len(s.Relocations), checkpoint.MaxRelocations)
	}
	if !s.Trust {
		if err := checkpoint.Trust(s.File); errors.Is(err, checkpoint.ErrUntrusted) {
			return nil, fmt.Errorf("%w, or say --trust", err)
		}
	}
	m, err := inspect(s.File)
	if err != nil {
		return nil, err
	}
	hold, err := kept(ctx, m, s, locks)
	if err != nil {
		return nil, err
	}
	if _, err := checkpoint.Find(ctx); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (string, error) { return x.restart(ctx, order, s, m, hold, locks) }, nil
}

// inspect reads the manifest of a file on this host. It waits for nobody at the other end of
// a pipe.
func inspect(path string) (*checkpoint.Manifest, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the context file on this node: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, cmp.Or(err, fmt.Errorf("%s is no regular file", path))
	}
	m, err := checkpoint.Inspect(f, false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// kept finds the suspended hold of a job. It is nil if the job had none.
func kept(ctx context.Context, m *checkpoint.Manifest, s RestartSpec, locks Locks) (*Hold, error) {
	if len(m.Locks) == 0 {
		if s.Lock != "" {
			return nil, fmt.Errorf("the job in %s had no lock when it was checkpointed", s.File)
		}
		return nil, nil
	}
	lock := m.Locks[0]
	if s.Lock != "" && !slices.ContainsFunc(m.Locks, func(l checkpoint.Lock) bool { return l.Name == s.Lock }) {
		return nil, fmt.Errorf("the job in %s had the lock %s, and not %s", s.File, lock.Name, s.Lock)
	}
	holds, err := locks.Holds(ctx, lock.Name)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		switch {
		case h.Suspended && h.Job == lock.Fence && h.ContextID != m.ID:
			return nil, fmt.Errorf("%s is kept for the job in %s, and %s is another checkpoint of it", lock.Name, h.Context, s.File)
		case h.Suspended && h.Job == lock.Fence && h.Ended:
			return &h, nil
		case h.Suspended && h.Job == lock.Fence:
			return nil, fmt.Errorf("the job in %s, process %d of %s, is not known to have ended: its node has to be there, or lockctl break gives %s up", s.File, h.PID, h.Host, lock.Name)
		case !h.Suspended && h.Fence == lock.Fence:
			return nil, fmt.Errorf("the job in %s lives: it holds %s, with fence %d, as process %d of %s", s.File, lock.Name, h.Fence, h.PID, h.Host)
		}
	}
	for _, h := range holds {
		return nil, fmt.Errorf("%s is not kept for the job in %s (fence %d) any more: it is held by %s, with fence %d",
			lock.Name, s.File, lock.Fence, h.Owner, h.Fence)
	}
	return nil, fmt.Errorf("%s is not kept for the job in %s any more: the hold with fence %d is over", lock.Name, s.File, lock.Fence)
}

// restart restores the job, gets it its lock, and lets it run.
func (x *Executor) restart(ctx context.Context, order uint64, s RestartSpec, m *checkpoint.Manifest, hold *Hold, locks Locks) (string, error) {
	forget, err := x.note(order, filepath.Dir(s.File))
	if err != nil {
		return "", err
	}
	defer forget()
	p, err := startParent()
	if err != nil {
		return "", err
	}
	// Until the job runs, the end of this connection ends it and its parent.
	abandon := context.AfterFunc(ctx, func() { _ = p.socket.Close() })
	fail := func(err error) (string, error) {
		abandon()
		_ = p.socket.Close()
		e := p.end(x.ctx, m)
		checkpoint.Sweep(filepath.Dir(s.File)) // what a parent that was killed has left
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", errors.Join(err, e)
	}
	var made restored
	if err := p.ask(s, &made); err != nil {
		return fail(fmt.Errorf("the process that is to restart the job: %w", err))
	}
	if made.Failed != "" {
		return fail(errors.New(made.Failed))
	}
	v := verdict{Run: true}
	if hold != nil {
		v.Fence, err = x.resume(ctx, locks, hold.Fence, made)
		if err != nil {
			return fail(err)
		}
	}
	// Whatever becomes of the order from here on, the job is to run, if it can.
	if !abandon() {
		return fail(context.Cause(ctx))
	}
	var ran restored
	if err := p.ask(v, &ran); err != nil || ran.Failed != "" {
		return fail(fmt.Errorf("the job was not let run: %w", cmp.Or(err, errors.New(ran.Failed))))
	}
	x.work.Go(func() { x.follow(p, order, s.File) })
	if hold != nil {
		if err := x.confirm(ctx, order, locks, v.Fence, made.PID); err != nil {
			return "", fmt.Errorf("the job runs, as process %d: %w", made.PID, err)
		}
	}
	text := fmt.Sprintf("%s, the eldest is %d", plural(len(m.Processes)), made.PID)
	if hold != nil {
		text += fmt.Sprintf("; %s is held, with fence %d", strings.Join(hold.Locks, " "), v.Fence)
	}
	return text, nil
}

// resume gets the job its lock. If ctx ends first it is not known whether it has it: it
// must not be let run then, and when it has ended the table takes the lock back.
func (x *Executor) resume(ctx context.Context, locks Locks, fence uint64, job restored) (uint64, error) {
	type answer struct {
		fence uint64
		err   error
	}
	done := make(chan answer, 1)
	x.work.Go(func() {
		fence, err := locks.Resume(x.ctx, fence, job.ID, job.PID)
		done <- answer{fence, err}
	})
	select {
	case a := <-done:
		return a.fence, a.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// confirm tells the table that the job was let run. It does not give up before this
// executor is closed, and then it is for [Executor.Recover].
func (x *Executor) confirm(ctx context.Context, order uint64, locks Locks, fence uint64, pid int) error {
	done := make(chan error, 1)
	x.work.Go(func() {
		err := locks.Runs(x.ctx, fence, pid)
		if err != nil && x.ctx.Err() == nil {
			x.log("a restarted job has lost its lock, and runs", "order", order, "pid", pid, "fence", fence, "error", err)
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return nil // it has its lock
	}
}

// parent is the process that is the job's parent.
type parent struct {
	cmd    *exec.Cmd
	socket *os.File
	said   *json.Decoder
}

func startParent() (*parent, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "parent"), os.NewFile(uintptr(pair[1]), "parent")
	defer theirs.Close()
	p := &parent{cmd: exec.Command("/proc/self/exe"), socket: ours, said: json.NewDecoder(ours)}
	p.cmd.Args = []string{parentName}
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start a parent for the job: %w", err)
	}
	return p, nil
}

func (p *parent) ask(question, answer any) error {
	if err := json.NewEncoder(p.socket).Encode(question); err != nil {
		return err
	}
	return p.said.Decode(answer)
}

// end waits for the end of a parent whose job is not to run, and sees to it that nothing is left of
// that: if the parent was killed, CRIU goes on without it, and what it restores stands still
// for ever. Both are of the parent's session, which is theirs alone. As always the job is killed
// before CRIU, which would let go of it.
func (p *parent) end(ctx context.Context, m *checkpoint.Manifest) error {
	session := p.cmd.Process.Pid // not another's before we have waited for it
	defer func() { _ = p.cmd.Wait() }()
	for {
		err := unix.Waitid(unix.P_PID, session, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return fmt.Errorf("wait for the job's parent: %w", err)
		}
	}
	for ctx.Err() == nil {
		job, others, err := left(session, m)
		if err != nil {
			return err
		}
		if len(job) == 0 {
			job = others
		}
		if len(job) == 0 {
			return nil
		}
		if err := endAll(ctx, session, job); err != nil {
			return err
		}
	}
	return nil
}

// follow waits for the end of the job, which nobody else may be there to tell of.
func (x *Executor) follow(p *parent, order uint64, file string) {
	stop := context.AfterFunc(x.ctx, func() { _ = p.socket.Close() })
	defer stop()
	var e ended
	if p.said.Decode(&e) != nil {
		if stop() { // we do not end before it: it was killed
			_ = p.socket.Close()
			_ = p.cmd.Wait()
			x.log("the parent of a restarted job has ended before the job", "order", order, "file", file)
		}
		return
	}
	status := syscall.WaitStatus(e.Status)
	if status.Signaled() {
		x.log("a restarted job has ended", "order", order, "file", file, "signal", status.Signal())
	} else {
		x.log("a restarted job has ended", "order", order, "file", file, "status", status.ExitStatus())
	}
	_ = p.cmd.Wait()
}
