package checkpoint

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Plan says how a context file is restarted.
type Plan struct {
	File   string
	Reader io.Reader // instead of File
	// Trusted says that the file is to be restarted even if others could have written it.
	Trusted bool
	// Suspended says that whoever restarts it sees to the locks that are kept for the file, if any are.
	Suspended   bool
	Relocations []Relocation
	// NewPIDs gives the processes other numbers, seen from outside: they live in a pid
	// namespace of their own, in which they have the old ones.
	NewPIDs bool
	// KeepGroups and KeepSessions restore process groups and sessions; otherwise the
	// processes join ours. In a session that began outside of our pid namespace, which
	// getsid(2) calls 0, they cannot be checkpointed again.
	KeepGroups, KeepSessions bool
	// Signal is what all processes get before they run on. 0 is none, SIGSTOP leaves
	// them stopped, SIGCONT has those run that were stopped when checkpointed.
	Signal syscall.Signal
	// OurTime leaves the job in our time namespace, without which CRIU cannot checkpoint
	// both of us together. Its monotonic clock is then that of the host, which another
	// boot has set back. See time_namespaces(7).
	OurTime bool
	CRIU    *CRIU // nil to find one
}

// Job is what was restarted.
type Job struct {
	Manifest *Manifest
	Warnings []string // of CRIU
	root     *os.File // pidfd; nil with a stage
	mark     *os.File // see [Job.Mark]
	stage    *stage   // stands between us and the job
	once     sync.Once
	status   syscall.WaitStatus
	err      error
}

func (p *Plan) check() error {
	switch {
	case (p.File == "") == (p.Reader == nil):
		return fail(Args, syscall.EINVAL, "say what to restart from")
	case p.Signal < 0 || p.Signal > 64:
		return fail(Args, syscall.EINVAL, "%d is no signal", int(p.Signal))
	case len(p.Relocations) > MaxRelocations:
		return fail(Args, syscall.EINVAL, "there are %d relocations, and at most %d are possible", len(p.Relocations), MaxRelocations)
	}
	return nil
}

// Restart starts what a context file holds. After an error, and at the end of ctx before
// it has returned, nothing of it runs, and with SIGSTOP nothing has run; orphans below this
// process may be its children from then on.
func Restart(ctx context.Context, p Plan) (*Job, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	in := os.TempDir()
	from := p.Reader
	if p.File != "" {
		f, err := p.open()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from, in = f, filepath.Dir(p.File)
	} else if err := trustReader(from); err != nil && !p.Trusted {
		return nil, err
	}
	if err := needRoot(); err != nil {
		return nil, err
	}
	if p.CRIU == nil {
		var err error
		if p.CRIU, err = Find(ctx); err != nil {
			return nil, err
		}
	}
	saved, err := openContext(from)
	if err != nil {
		return nil, p.named(err)
	}
	if err := saved.manifest.mayRun(p.Suspended); err != nil {
		saved.close()
		return nil, err
	}
	size := saved.manifest.size()
	if p.File != "" && !hasRoom(in, size) && hasRoom(os.TempDir(), size) {
		in = os.TempDir()
	}
	b, err := newBox(in)
	if err != nil && p.File != "" { // a directory that cannot be written to may be read from
		in = os.TempDir()
		b, err = newBox(in)
	}
	if err != nil {
		saved.close()
		return nil, classed(err, "make a directory for the images")
	}
	defer b.remove()
	// A stage with process numbers of its own has another /proc; and where others can write nothing
	// is restarted, unless they are trusted.
	b.way = b.dir
	if err := saved.unpack(b.images()); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fail(Temp, syscall.ENOSPC, "there is no room in %s for the images, %.1f MB: make some, there or where TMPDIR says", in, float64(size)/1e6)
		}
		return nil, p.named(err)
	}
	j := &Job{Manifest: saved.manifest}
	if err := p.start(ctx, b, j); err != nil {
		return nil, classed(err, "start the job")
	}
	return j, nil
}

// named says which file it is that is no good.
func (p *Plan) named(err error) error {
	if e := (*Error)(nil); p.File != "" && errors.As(err, &e) && e.Class == Perm {
		return e.of(p.File)
	}
	return err
}

// ErrSuspended says that locks are kept for the file, which a restart would go on without.
var ErrSuspended = errors.New("kept for it")

func (m *Manifest) mayRun(suspended bool) error {
	if !m.Suspended || suspended {
		return nil
	}
	var names []string
	for _, l := range m.Locks {
		names = append(names, l.Name)
	}
	return fail(Env, syscall.ENOLCK, "%s was %w: restart it with lockctl restart, which takes the lock over if it still is", strings.Join(names, " "), ErrSuspended)
}

// open opens the file.
func (p *Plan) open() (f *os.File, err error) {
	if p.Trusted {
		f, err = os.Open(p.File)
	} else {
		f, err = openTrusted(p.File)
	}
	if e := (*Error)(nil); err != nil && !errors.As(err, &e) {
		errno := syscall.EIO
		errors.As(err, &errno)
		err = fail(Args, errno, "%w", err)
	}
	return f, err
}

// start starts from verified images.
func (p *Plan) start(ctx context.Context, b *box, j *Job) error {
	m := j.Manifest
	if err := m.fits(); err != nil {
		return err
	}
	leaders, err := m.leaders(p.KeepGroups, p.KeepSessions)
	if err != nil {
		return err
	}
	if !p.NewPIDs {
		if err := m.waitFree(ctx, leaders); err != nil {
			return err
		}
	}
	relocations, err := canonical(p.Relocations)
	if err != nil {
		return err
	}
	if err := editFiles(b.images(), relocations); err != nil {
		return err
	}
	if err := editTree(b.images(), m, p.KeepGroups, p.KeepSessions); err != nil {
		return err
	}
	if p.OurTime {
		if err := os.Remove(filepath.Join(b.images(), "timens-0.img")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	input, err := p.input(m)
	if err != nil {
		return err
	}
	defer input.Close()
	o := p.order(b, m, leaders)
	if o.Namespace || len(leaders) > 0 {
		j.stage, err = startStage(ctx, o, input)
	} else if err = o.restore(ctx, input); err == nil {
		var fd int
		if fd, err = unix.PidfdOpen(m.Root, 0); err == nil {
			j.root = os.NewFile(uintptr(fd), "pidfd")
		}
	}
	log := readLog(o.Log)
	j.Warnings = log.warnings
	if errors.Is(err, errCRIU) {
		return log.judge()
	}
	return err
}

// input is the descriptor that CRIU takes for the terminal: our controlling one (tty(4)).
func (p *Plan) input(m *Manifest) (*os.File, error) {
	if len(m.Terminals) == 0 {
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fail(Env, syscall.ENOTTY, "it was checkpointed with a terminal, and there is none here: %w", err)
	}
	return tty, nil
}

// restoreOrder is what is told to who runs CRIU.
type restoreOrder struct {
	Namespace bool
	Leaders   []leader
	CRIU      string
	Args      []string
	Log       string
	Root      int
	PIDs      []int
	Stopped   []int // of those, that were stopped when checkpointed
	Signal    syscall.Signal
	Asker     *Asker
}

func (p *Plan) order(b *box, m *Manifest, leaders []leader) *restoreOrder {
	o := &restoreOrder{
		Namespace: p.NewPIDs, Leaders: leaders, CRIU: p.CRIU.Path, Log: b.path("restore.log"), Root: m.Root, Signal: p.Signal, Asker: m.Asker,
		Args: []string{
			"restore", "--images-dir", b.images(), "--work-dir", b.images(), "--log-file", b.path("restore.log"), "-v2",
			"--restore-detached", "--restore-sibling", "--shell-job", "--file-locks",
		},
	}
	switch TCP(m.TCP) {
	case TCPRestore:
		o.Args = append(o.Args, "--tcp-established")
	case TCPClose:
		o.Args = append(o.Args, "--tcp-close")
	}
	if o.holds() || p.Signal == syscall.SIGSTOP {
		o.Args = append(o.Args, "--leave-stopped")
	}
	for _, one := range m.Processes {
		if one.Ended {
			continue
		}
		o.PIDs = append(o.PIDs, one.PID)
		if one.Stopped {
			o.Stopped = append(o.Stopped, one.PID)
		}
	}
	return o
}

// holds says whether the processes are to have a signal before they run.
func (o *restoreOrder) holds() bool {
	return o.Signal != 0 && o.Signal != syscall.SIGSTOP && o.Signal != syscall.SIGCONT
}

// restore runs CRIU, and then sends the signal. The eldest process becomes our child.
func (o *restoreOrder) restore(ctx context.Context, input *os.File) error {
	cmd := exec.CommandContext(ctx, o.CRIU, o.Args...)
	cmd.Cancel = func() error { return o.giveUp(cmd.Process) }
	said, err := saidFile(o.Log)
	if err != nil {
		return err
	}
	defer said.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, said, said
	err = cmd.Run()
	switch {
	case ctx.Err() != nil: // even if CRIU was done before it was killed
		o.abandon()
		return fail(Temp, syscall.EINTR, "it was given up: %w", context.Cause(ctx))
	case err != nil:
		o.abandon()
		if cmd.ProcessState != nil && cmd.ProcessState.Exited() {
			return errCRIU
		}
		return fail(Temp, syscall.EINTR, "CRIU was ended: %w", err)
	}
	if err := o.tellRestored(); err != nil {
		o.abandon()
		return err
	}
	o.deliver()
	return nil
}

// deliver sends the signal.
func (o *restoreOrder) deliver() {
	if o.Signal == 0 || o.Signal == syscall.SIGSTOP { // CRIU leaves them stopped itself
		return
	}
	for _, pid := range o.PIDs {
		_ = syscall.Kill(pid, o.Signal) // one that has ended meanwhile is none to tell
	}
	if !o.holds() || o.Signal == syscall.SIGKILL {
		return
	}
	o.resume()
}

// resume lets those processes run that were not stopped when checkpointed.
func (o *restoreOrder) resume() {
	stopped := map[int]bool{}
	for _, pid := range o.Stopped {
		stopped[pid] = true
	}
	for _, pid := range o.PIDs {
		if !stopped[pid] {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

// waitFor waits for the end of a child.
func waitFor(pid int) (status syscall.WaitStatus, err error) {
	for {
		_, err = syscall.Wait4(pid, &status, 0, nil)
		if err != syscall.EINTR {
			return status, os.NewSyscallError("wait4 "+strconv.Itoa(pid), err)
		}
	}
}

// Wait waits for the end of the eldest process. The others may live on.
func (j *Job) Wait() (syscall.WaitStatus, error) {
	j.once.Do(func() {
		if j.stage != nil {
			j.status, j.err = j.stage.wait()
			return
		}
		j.status, j.err = waitFor(j.Manifest.Root)
		_ = j.root.Close()
	})
	return j.status, j.err
}

// PID is the number by which we know the job: that of its eldest process, or of the stage
// that it lives under.
func (j *Job) PID() int {
	if j.stage != nil {
		return j.stage.cmd.Process.Pid
	}
	return j.Manifest.Root
}

// Continue lets those processes run that were left stopped, as Plan.Signal said, and were
// not stopped when checkpointed.
func (j *Job) Continue() error {
	if j.stage != nil {
		return j.stage.signal(resume)
	}
	for _, p := range j.Manifest.Processes {
		if !p.Stopped && !p.Ended {
			_ = syscall.Kill(p.PID, syscall.SIGCONT) // they stand still, and cannot have ended
		}
	}
	return nil
}

// Kill ends all processes of a job that still stand still.
func (j *Job) Kill() {
	if j.stage != nil {
		j.stage.giveUp()
	}
	for _, p := range j.Manifest.Processes {
		if j.stage == nil && !p.Ended {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
}

// Signal sends a signal to the eldest process.
func (j *Job) Signal(sig syscall.Signal) error {
	if j.stage != nil {
		return j.stage.signal(sig)
	}
	c, err := j.root.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = c.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, sent)
}
