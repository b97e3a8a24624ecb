package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
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

func inspect(path string) (*checkpoint.Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the context file on this node: %w", err)
	}
	defer f.Close()
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
		case h.Fence != lock.Fence:
		case !h.Suspended:
			return nil, fmt.Errorf("the job in %s lives: it holds %s, with fence %d, as process %d of %s", s.File, lock.Name, h.Fence, h.PID, h.Host)
		default:
			return &h, nil
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
	p, err := startParent()
	if err != nil {
		return "", err
	}
	// Until the job runs, the end of this connection ends it and its parent.
	abandon := context.AfterFunc(ctx, func() { _ = p.socket.Close() })
	fail := func(err error) (string, error) {
		abandon()
		_ = p.socket.Close()
		_ = p.cmd.Wait()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", err
	}
	var made restored
	if err := p.ask(s, &made); err != nil {
		return fail(fmt.Errorf("the process that is to restart the job: %w", err))
	}
	if made.Failed != "" {
		return fail(errors.New(made.Failed))
	}
	var v verdict
	if hold != nil {
		// Asked once, it has to be known: no context ends this but that of the executor.
		if !abandon() {
			return fail(context.Cause(ctx))
		}
		v.Fence, err = locks.Resume(x.ctx, hold.Fence, made.PID)
		if err != nil {
			return fail(err)
		}
	}
	v.Run = true
	var ran restored
	if err := p.ask(v, &ran); err != nil || ran.Failed != "" {
		return fail(fmt.Errorf("the job was not let run: %w", errors.Join(err, errors.New(ran.Failed))))
	}
	abandon()
	x.work.Add(1)
	go func() {
		defer x.work.Done()
		x.follow(p, order, s.File)
	}()
	text := fmt.Sprintf("%s, the eldest is %d", plural(len(m.Processes)), made.PID)
	if hold != nil {
		text += fmt.Sprintf("; %s is held, with fence %d", strings.Join(hold.Locks, " "), v.Fence)
	}
	return text, nil
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

// follow waits for the end of the job, which nobody else may be there to tell of.
func (x *Executor) follow(p *parent, order uint64, file string) {
	stop := context.AfterFunc(x.ctx, func() { _ = p.socket.Close() })
	defer stop()
	var e ended
	if p.said.Decode(&e) != nil {
		return // we end before it, or it was killed
	}
	status := syscall.WaitStatus(e.Status)
	if status.Signaled() {
		x.log("a restarted job has ended", "order", order, "file", file, "signal", status.Signal())
	} else {
		x.log("a restarted job has ended", "order", order, "file", file, "status", status.ExitStatus())
	}
	_ = p.cmd.Wait()
}
