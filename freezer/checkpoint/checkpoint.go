package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TCP says what becomes of open TCP connections.
type TCP string

const (
	TCPRefuse  TCP = ""        // a checkpoint with one fails
	TCPRestore TCP = "restore" // they are restored, on a host with the same address, if the peer has them still
	TCPClose   TCP = "close"   // they are closed in the restarted process
)

// Order says what is checkpointed to where.
type Order struct {
	Target Target
	File   string    // is made, or replaced in one step
	Writer io.Writer // instead of File: where it is written to
	// Exclusive is an error if File is there; Backup is the name that it is kept
	// under.
	Exclusive bool
	Backup    string
	// Signal is what all processes get when the file is safe; they do not run in
	// between. 0 is none: they run on as soon as there are images.
	Signal   syscall.Signal
	TCP      TCP
	Compress bool // with zstd
	NoSync   bool // leave it to the kernel when it gets to the disk
	// Incremental asks for images of what has changed only.
	Incremental bool
	// Timeout is how long it may take until all processes stand still; 0 is 10 s.
	Timeout time.Duration
	// Copied, if not nil, is called when there are images, and the processes run on, if they
	// are to. The file is not safe then.
	Copied func()
	Locks  []Lock
	// Suspended says that the locks are kept for the file while the processes are on disk.
	Suspended bool
	// User is whose file it is to be, nil for root's. All processes have to be theirs,
	// and what they may not write is not written. Images and the unfinished file are then
	// not beside it, but in Scratch.
	User *User
	// Scratch is a directory with room for the memory, which only root can rename or remove
	// things in; "" is os.TempDir. Where there is a File and no User it is not used.
	Scratch string
	Asker   *Asker // who of them asks
	// Safe is called when the file is whole, and before the signal. After an error of it
	// the processes run on; the file stays.
	Safe func(*Manifest) error
	CRIU *CRIU // nil to find one
}

// Report tells of a checkpoint.
type Report struct {
	Manifest *Manifest
	Size     int64         // of the file, in bytes
	Pause    time.Duration // how long the processes stood still; 0 if they were not to run on
	Warnings []string      // of CRIU
}

// DefaultTimeout is how long it may take until all processes stand still.
const DefaultTimeout = 10 * time.Second

func (o *Order) check() error {
	switch {
	case (o.File == "") == (o.Writer == nil):
		return fail(Args, syscall.EINVAL, "say where to write the checkpoint")
	case o.Signal < 0 || o.Signal > 64:
		return fail(Args, syscall.EINVAL, "%d is no signal", int(o.Signal))
	case o.TCP != TCPRefuse && o.TCP != TCPRestore && o.TCP != TCPClose:
		return fail(Args, syscall.EINVAL, "TCP connections cannot be treated as %q", o.TCP)
	case o.Timeout < 0:
		return fail(Args, syscall.EINVAL, "a timeout of %v is less than nothing", o.Timeout)
	case o.User != nil && (o.File == "" || o.Exclusive || o.Backup != ""):
		return fail(Args, syscall.EINVAL, "what is made for a user is a file, and replaces what is there")
	case o.Exclusive && o.Backup != "":
		return fail(Args, syscall.EINVAL, "a file that must not be there has no backup")
	}
	return nil
}

// holds says whether the processes are to wait until the file is safe.
func (o *Order) holds() bool { return o.Signal != 0 && o.Signal != syscall.SIGCONT }

// Checkpoint writes a context file. After an error, and at the end of ctx, the processes
// run on, and there is no file; only if the error is of a signal that was to be sent
// there may be one, which then is whole.
func Checkpoint(ctx context.Context, o Order) (*Report, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := needRoot(); err != nil {
		return nil, err
	}
	if o.CRIU == nil {
		var err error
		if o.CRIU, err = Find(ctx); err != nil {
			return nil, err
		}
	}
	if o.Incremental {
		return nil, o.refuseIncremental(ctx)
	}
	in := o.Scratch
	if in == "" {
		in = os.TempDir()
	}
	if o.File != "" {
		var err error
		if o.File, err = filepath.Abs(o.File); err != nil {
			return nil, classed(err, "find our directory")
		}
	}
	if o.File != "" && o.User == nil {
		in = filepath.Dir(o.File)
		if _, err := os.Lstat(o.File); err == nil && o.Exclusive {
			return nil, fail(Args, syscall.EEXIST, "%s is there already", o.File)
		}
		if err := replaceable(o.File); err != nil {
			return nil, err
		}
		if err := o.checkBackup(); err != nil {
			return nil, err
		}
	}
	b, err := newBox(in)
	if err != nil {
		return nil, o.full(classed(err, "make a directory for the images"), in)
	}
	r, err := o.run(ctx, b)
	if err != nil {
		return nil, o.full(classed(err, fmt.Sprintf("checkpoint %v", o.Target)), in)
	}
	return r, nil
}

// full says where there is no room, if that is what an error is of, and what to do. Writer and
// Safe speak for themselves.
func (o *Order) full(err error, in string) error {
	var e *Error
	if !errors.As(err, &e) || e.Errno != syscall.ENOSPC && e.Errno != syscall.EDQUOT {
		return err
	}
	dir, more := in, ""
	path := (*os.PathError)(nil)
	named := errors.As(err, &path)
	inBox := named && (strings.HasPrefix(path.Path, boxWay()) || strings.HasPrefix(path.Path, filepath.Join(in, strings.TrimSuffix(boxPattern, "*"))))
	switch {
	case o.File != "" && o.User == nil && (inBox || !named || path.Path == o.File): // all of it is there
		more = ", for twice the memory of the processes, or write to another file system"
	case named && path.Path == o.File:
		dir = filepath.Dir(o.File)
	case !inBox && e.Log == nil:
		return err
	case o.Writer != nil && o.Scratch == "":
		more = ", or name another directory in TMPDIR"
	}
	why := "the file system of %s is full"
	if e.Errno == syscall.EDQUOT {
		why = "the quota on the file system of %s is used up"
	}
	full := fail(e.Class, e.Errno, "checkpoint %v: "+why+": make room there%s", o.Target, dir, more)
	full.Log = e.Log
	return full
}

// refuseIncremental says why there are no incremental checkpoints here.
func (o *Order) refuseIncremental(ctx context.Context) error {
	if !o.CRIU.Supports(ctx, "mem_dirty_track") {
		return fail(Env, syscall.EOPNOTSUPP, "this kernel does not tell which pages of memory have changed (CONFIG_MEM_SOFT_DIRTY), so there is no incremental checkpoint")
	}
	return fail(Args, syscall.EOPNOTSUPP, "incremental checkpoints are not implemented")
}

// run makes the checkpoint with the help of a box, which it removes.
func (o *Order) run(ctx context.Context, b *box) (r *Report, err error) {
	all, err := readTable()
	if err != nil {
		b.remove()
		return nil, err
	}
	root, before, err := o.Target.resolve(all)
	if err != nil {
		b.remove()
		return nil, err
	}
	args, err := o.arguments(b, root)
	if err != nil {
		b.remove()
		return nil, err
	}
	k, err := startKeeper(b, o.CRIU.Path, args, o.holds())
	if err != nil {
		b.remove()
		return nil, err
	}
	ended := false
	defer func() { k.end(!ended && ctx.Err() != nil) }()
	if o.holds() {
		err = k.waitHeld(ctx)
	} else {
		err = k.wait(ctx)
		ended = err == nil
	}
	log := readLog(b.path(dumpLog))
	if errors.Is(err, errCRIU) {
		ended = true
		if len(log.errors) == 0 { // it may be that it could not say anything
			if err := b.room(); err != nil {
				return nil, err
			}
		}
		return nil, log.judge().of(fmt.Sprintf("checkpoint %v", o.Target))
	}
	if err != nil {
		return nil, err
	}
	if o.Copied != nil {
		o.Copied()
	}
	r = &Report{Warnings: log.warnings, Pause: readPause(b.images())}
	if r.Manifest, err = describe(b.images(), before); err != nil {
		return nil, err
	}
	r.Manifest.Target, r.Manifest.TCP, r.Manifest.Locks, r.Manifest.CRIU = o.Target.String(), string(o.TCP), o.Locks, o.CRIU.Version
	r.Manifest.Asker, r.Manifest.Suspended = o.Asker, o.Suspended
	if o.User != nil {
		if err := o.User.mayHave(b.images(), r.Manifest); err != nil {
			return nil, err
		}
	}
	if r.Size, err = o.save(ctx, r.Manifest, b); err != nil {
		return nil, err
	}
	if o.Safe != nil {
		if err := o.Safe(r.Manifest); err != nil {
			return nil, err
		}
	}
	if o.Signal == 0 {
		return r, nil
	}
	if !o.holds() || o.Signal != syscall.SIGKILL && o.Signal != syscall.SIGSTOP {
		signalAll(r.Manifest, o.Signal)
	}
	if !o.holds() {
		return r, nil
	}
	if err := k.release(); err != nil {
		return nil, err
	}
	if err := k.wait(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("the file is whole, but the processes may run on: %w", err)
	}
	ended = true
	return r, nil
}

// ghostLimit is how much of a file that has no name any more may be in the images.
const ghostLimit = "2G"

// arguments are those of CRIU.
func (o *Order) arguments(b *box, root int) ([]string, error) {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	args := []string{
		"dump", "--tree", strconv.Itoa(root), "--images-dir", b.images(), "--work-dir", b.images(), "--log-file", b.path(dumpLog), "-v2",
		"--timeout", strconv.Itoa(int(math.Ceil(timeout.Seconds()))),
		"--shell-job",  // its session's leader may not be of the tree
		"--file-locks", // one may be inherited from flock(1)
		"--ghost-limit", ghostLimit,
	}
	switch o.TCP {
	case TCPRestore:
		// This lock needs no program, but the kernel's time while the processes stand
		// still, so it is not for those that have no connection.
		args = append(args, "--tcp-established", "--network-lock", "nftables")
	case TCPClose:
		args = append(args, "--tcp-close")
	}
	switch {
	case o.Signal == syscall.SIGSTOP:
		args = append(args, "--leave-stopped")
	case o.Signal != syscall.SIGKILL:
		args = append(args, "--leave-running")
	}
	cgroup, err := frozenCgroup(root)
	if err != nil {
		return nil, fmt.Errorf("find the cgroup of %d: %w", root, err)
	}
	if cgroup != "" {
		args = append(args, "--freeze-cgroup", cgroup)
	}
	return args, nil
}

// signalAll sends a signal to all processes of a manifest that are still those.
func signalAll(m *Manifest, sig syscall.Signal) {
	for _, p := range m.Processes {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			continue
		}
		// What the descriptor is for cannot change any more.
		if now, err := readProcess(p.PID); err == nil && now.start == p.Start {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// save writes the file and brings it to the disk.
func (o *Order) save(ctx context.Context, m *Manifest, b *box) (size int64, err error) {
	if err := m.sumParts(b.images()); err != nil {
		return 0, err
	}
	if o.Writer != nil {
		w := &counter{ctx: ctx, w: o.Writer}
		err := writeContext(w, m, b.images(), o.Compress)
		return w.n, err
	}
	if o.User != nil {
		f, err := o.User.create(o.File)
		if err != nil {
			return 0, err
		}
		defer f.close()
		if size, err = o.write(ctx, f.File, m, b); err == nil {
			err = f.publish(!o.NoSync)
		}
		if err != nil {
			f.discard()
		}
		return size, err
	}
	fd, err := unix.Openat(int(b.at.Fd()), "context", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, &os.PathError{Op: "create", Path: o.File, Err: err}
	}
	f := os.NewFile(uintptr(fd), o.File)
	defer f.Close()
	if size, err = o.write(ctx, f, m, b); err != nil {
		return 0, err
	}
	if !o.NoSync {
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	if ctx.Err() != nil { // that may have taken long
		return 0, context.Cause(ctx)
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	return size, o.publish(b)
}

func (o *Order) write(ctx context.Context, f *os.File, m *Manifest, b *box) (size int64, err error) {
	w := &counter{ctx: ctx, w: f, flush: f}
	if o.NoSync {
		w.flush = nil
	}
	err = writeContext(w, m, b.images(), o.Compress)
	return w.n, err
}

// replaceable refuses to put a file in the place of a directory, a pipe or a device, also
// behind a symbolic link: that of /dev/stdout is everybody's.
func replaceable(path string) error {
	switch st, err := os.Stat(path); {
	case err != nil: // it is not there, or making the file says why not
		return nil
	case st.IsDir():
		return fail(Args, syscall.EISDIR, "%s is a directory", path)
	case !st.Mode().IsRegular():
		return fail(Args, syscall.EINVAL, "%s is no regular file, and would be replaced by one", path)
	}
	return nil
}

// checkBackup refuses what could only fail, or lose something, when all is done.
func (o *Order) checkBackup() error {
	if o.Backup == "" {
		return nil
	}
	var err error
	if o.Backup, err = filepath.Abs(o.Backup); err != nil {
		return classed(err, "find our directory")
	}
	if err := replaceable(o.Backup); err != nil {
		return err
	}
	file, err := os.Lstat(o.File)
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is nothing to keep
	}
	if err != nil {
		return classed(err, "look at the old file")
	}
	dir, err := os.Stat(filepath.Dir(o.Backup))
	if err != nil {
		return classed(err, "look at the directory of the backup")
	}
	its, err := os.Stat(filepath.Dir(o.File))
	if err != nil {
		return classed(err, "look at the directory of the file")
	}
	if os.SameFile(its, dir) && filepath.Base(o.Backup) == filepath.Base(o.File) { // a link may lead there
		return fail(Args, syscall.EINVAL, "%s cannot be its own backup", o.File)
	}
	if file.Sys().(*syscall.Stat_t).Dev != dir.Sys().(*syscall.Stat_t).Dev {
		return fail(Args, syscall.EXDEV, "the backup %s would be on another file system than %s", o.Backup, o.File)
	}
	return nil
}

// publish gives the file that was made in the box its name.
func (o *Order) publish(b *box) error {
	if o.Backup != "" {
		if err := keep(o.File, o.Backup, b); err != nil {
			return err
		}
	}
	made := b.path("context")
	var err error
	if o.Exclusive {
		err = unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, o.File, unix.RENAME_NOREPLACE)
	} else {
		err = os.Rename(made, o.File)
	}
	if err != nil {
		return fmt.Errorf("give %s its name: %w", o.File, err)
	}
	if o.NoSync {
		return nil
	}
	dir, err := os.Open(filepath.Dir(o.File))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// keep gives a file another name too, so that it is there until it is replaced. What had
// that name is replaced in one step.
func keep(file, name string, b *box) error {
	err := os.Link(file, b.path("old"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Rename(b.path("old"), name)
	}
	if err != nil {
		return fmt.Errorf("keep %s as %s: %w", file, name, err)
	}
	return nil
}

// counter counts what is written, gives up at the end of a context, and has the disk
// begin early.
type counter struct {
	ctx     context.Context
	w       io.Writer
	n       int64
	flush   *os.File
	flushed int64
}

const flushEvery = 16 << 20

func (c *counter) Write(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	if c.flush != nil && c.n-c.flushed >= flushEvery {
		_ = unix.SyncFileRange(int(c.flush.Fd()), c.flushed, c.n-c.flushed, unix.SYNC_FILE_RANGE_WRITE) // fsync tells of errors
		c.flushed = c.n
	}
	return n, err
}
