package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/getopt"
)

const usage = `cr_checkpoint - save running processes in a checkpoint file

Usage: cr_checkpoint [OPTION]... ID
       cr_checkpoint --self [--exit] FILE

Saves a process and its descendants, from which cr_restart starts them again. They
stand still only until they have been copied; what follows, to the file on the disk,
happens behind their backs. If the checkpoint fails, or is killed, they run on, and
there is no file.

Examples:
  cr_checkpoint 4711                               to context.4711
  cr_checkpoint --term -f job.ckpt --zstd 4711     and end it when the file is safe
  cr_checkpoint --session --backup 4700
  cr_checkpoint --tcp=close 4711
  cr_checkpoint --fd 1 4711 | ssh store 'cat >job.ckpt'
  cr_checkpoint --self job.ckpt                    from within a job of lockersh --checkpointable

Options:
`

const usageEnd = `
Where options exclude each other the last one counts. A process has to be
checkpointed with all its descendants; where a group or session is not that, it is
refused.

With --self the job that we are of is saved, by whoever serves $LOCKERD_CHECKPOINT_SOCKET,
and we with it: we end twice, or more often. It does not take root, and only --quiet
goes with it.

Environment:
  LOCKERD_CRIU  the program criu (else that of scripts/install-criu, or in PATH)
  TMPDIR        where there is room for the memory, with --fd; else it is beside FILE

Exit status: 0, with --self 10 if it is a restart, or the number of the error (errno(3)),
which with --self is 5 EIO instead of 10:
   1 EPERM    it takes root
   3 ESRCH    there is no such process
  16 EBUSY    it is traced by another program
  17 EEXIST   FILE is there, with --noclobber
  21 EISDIR   FILE is a directory
  22 EINVAL   wrong usage, or FILE is a pipe or a device
  28 ENOSPC   the disk is full
  32 EPIPE    whoever was to read what --fd writes is gone
  95 ENOTSUP  what it uses cannot be checkpointed
 107 ENOTCONN it has an open connection
 110 ETIMEDOUT it did not stand still, or the time is up
`

// How much is told of CRIU's messages.
const (
	kmsgNone = iota
	kmsgError
	kmsgWarning
)

type options struct {
	order          checkpoint.Order
	scope          func(int) checkpoint.Target
	file, dir      string
	fd             int
	backup         string
	timeout        time.Duration
	tcp            string
	kmsg           int
	quiet, verbose bool
	self, exit     bool
	help, version  bool
	refused        error // an option that is possible with BLCR only
}

// numbered is the backup that is named after the file.
const numbered = "*.~N~"

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("cr_checkpoint", pflag.ContinueOnError)
	fs.SortFlags = false
	act := getopt.Actions{FlagSet: fs}
	fs.BoolVarP(&o.help, "help", "?", false, "print this text")
	fs.BoolVar(&o.version, "version", false, "print the version")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "print no errors or warnings")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "tell what was saved, and how long it stood still")

	fs.BoolVar(&o.self, "self", false, "save the job that we are of, when it suits it")
	fs.BoolVar(&o.exit, "exit", false, "with --self: kill the job when the file is safe")

	scope := func(to func(int) checkpoint.Target) func() { return func() { o.scope = to } }
	act.Alone("tree", "T", "ID is a process, saved with all its descendants (default)", scope(checkpoint.Tree))
	act.Alone("pid", "p", "ID is a process that has no children", scope(checkpoint.Single))
	act.Alone("process", "", "the same as --pid", scope(checkpoint.Single))
	act.Alone("pgid", "g", "ID is a process group", scope(checkpoint.Group))
	act.Alone("group", "", "the same as --pgid", scope(checkpoint.Group))
	act.Alone("sid", "s", "ID is a session", scope(checkpoint.Session))
	act.Alone("session", "", "the same as --sid", scope(checkpoint.Session))

	act.Alone("cwd", "c", "save in context.ID in the working directory (default)", func() { o.file = "" })
	fs.StringVarP(&o.file, "file", "f", "", "save in `FILE`")
	act.With("fd", "F", "N", "write to the open file descriptor N, which may be a pipe", getopt.Descriptor(&o.fd))
	fs.StringVarP(&o.dir, "dir", "d", "", "save in `DIR`, in a file for each process (not implemented, as in BLCR)")

	policy := func(exclusive bool) func() { return func() { o.order.Exclusive, o.backup = exclusive, "" } }
	act.Alone("atomic", "", "replace FILE in one step (default)", policy(false))
	act.With("backup", "", "NAME", "replace FILE in one step, and keep the old one as NAME, or FILE.~1~ and so on", func(text string) error {
		o.order.Exclusive, o.backup = false, text
		return nil
	}).NoOptDefVal = numbered
	act.Alone("clobber", "", "the same as --atomic: no half a file is ever seen", policy(false))
	act.Alone("noclobber", "", "fail if FILE is there", policy(true))

	signal := func(s syscall.Signal) func() { return func() { o.order.Signal = s } }
	act.Alone("run", "", "let the processes run on (default)", signal(0))
	act.With("signal", "S", "NUM", "send all processes the signal NUM when the file is safe", func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 64 {
			return errors.New("it is no signal's number")
		}
		o.order.Signal = syscall.Signal(n)
		return nil
	})
	act.Alone("stop", "", "leave all processes stopped (SIGSTOP)", signal(syscall.SIGSTOP))
	act.Alone("term", "", "send all processes SIGTERM when the file is safe", signal(syscall.SIGTERM))
	act.Alone("abort", "", "send all processes SIGABRT when the file is safe", signal(syscall.SIGABRT))
	act.Alone("kill", "", "send all processes SIGKILL when the file is safe", signal(syscall.SIGKILL))
	act.Alone("cont", "", "send all processes SIGCONT, for those that were stopped", signal(syscall.SIGCONT))

	act.Alone("sync", "", "bring the file to the disk (default)", func() { o.order.NoSync = false })
	act.Alone("nosync", "", "leave that to the kernel: a crash of the host may take it", func() { o.order.NoSync = true })
	act.With("time", "t", "SEC", "give up after so many seconds", func(text string) error {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || !(f > 0 && f <= 1e9) {
			return errors.New("it is no number of seconds")
		}
		o.timeout = time.Duration(f * float64(time.Second))
		return nil
	})
	fs.StringVar(&o.tcp, "tcp", "refuse", "what to do with open TCP connections: refuse, restore (they wait meanwhile), or close when restarted; `WHAT`")
	fs.BoolVar(&o.order.Compress, "zstd", false, "compress the file")
	fs.BoolVar(&o.order.Incremental, "incremental", false, "save only what has changed since the last checkpoint, where the kernel knows that")

	no := func(what string) func() {
		return func() { o.refused = wrong("%s", what) }
	}
	act.Alone("save-none", "", "save files by their names (default)", func() {})
	for _, part := range []string{"exe", "private", "shared", "all"} {
		act.Alone("save-"+part, "", "refused: files are not saved", no("--save-"+part+": CRIU saves files by their names, not what is in them"))
	}
	act.Alone("ptraced-error", "", "fail if a process is traced (default)", func() {})
	for _, name := range []string{"ptraced-allow", "ptraced-skip"} {
		act.Alone(name, "", "refused", no("--"+name+": Linux lets a process have one tracer, and CRIU has to be it"))
	}
	act.Alone("ptracer-error", "", "fail if a process traces another (default)", func() {})
	act.Alone("ptracer-skip", "", "refused", no("--ptracer-skip: CRIU cannot leave a process out"))

	kmsg := func(v int) func() { return func() { o.kmsg = v } }
	act.Alone("kmsg-none", "", "print no messages of CRIU, which has the part of BLCR's kernel module (default)", kmsg(kmsgNone))
	act.Alone("kmsg-error", "", "print CRIU's messages if the checkpoint fails", kmsg(kmsgError))
	act.Alone("kmsg-warning", "", "print CRIU's messages, also its warnings when it succeeds", kmsg(kmsgWarning))
	return fs
}

// parse reads a command line. With an error --quiet is valid as far as it was read.
func parse(args []string) (*options, error) {
	o := &options{fd: -1, scope: checkpoint.Tree}
	fs := flags(o)
	if err := fs.Parse(args); err != nil {
		return o, wrong("%s; see --help", err)
	}
	words := fs.Args()
	switch {
	case o.help || o.version:
		return o, nil
	case o.self:
		return o, o.parseSelf(fs)
	case o.exit:
		return o, wrong("--exit goes with --self; see --kill")
	case o.refused != nil:
		return o, o.refused
	case fs.Changed("dir"):
		return o, wrong("--dir is not implemented: a checkpoint is one file")
	case o.file != "" && fs.Changed("fd"):
		return o, wrong("--file and --fd are two places, and one is possible")
	case len(words) != 1:
		return o, wrong("say which process to checkpoint, and only one; see --help")
	}
	id, err := strconv.Atoi(words[0])
	if err != nil || id <= 0 {
		return o, wrong("%q is no process number", words[0])
	}
	o.order.Target = o.scope(id)
	switch o.tcp {
	case "refuse":
	case "restore", "close":
		o.order.TCP = checkpoint.TCP(o.tcp)
	default:
		return o, wrong("--tcp=%s: it is refuse, restore or close", o.tcp)
	}
	if o.timeout > 0 {
		o.order.Timeout = o.timeout
	}
	if !fs.Changed("fd") {
		o.order.File = o.file
		if o.file == "" {
			o.order.File = "context." + words[0]
		}
		return o, nil
	}
	if _, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETFD, 0); err != nil {
		return o, wrong("file descriptor %d: %w", o.fd, err)
	}
	unix.CloseOnExec(o.fd)
	o.order.Writer = os.NewFile(uintptr(o.fd), "fd "+strconv.Itoa(o.fd))
	return o, nil
}

// parseSelf reads the rest of a command line with --self.
func (o *options) parseSelf(fs *pflag.FlagSet) error {
	var other error
	fs.Visit(func(f *pflag.Flag) {
		if f.Name != "self" && f.Name != "exit" && f.Name != "quiet" {
			other = wrong("--%s does not go with --self", f.Name)
		}
	})
	if other != nil {
		return other
	}
	if fs.NArg() != 1 || fs.Arg(0) == "" {
		return wrong("--self: say in which file; see --help")
	}
	o.file = fs.Arg(0)
	return nil
}

// backupName is the name for the old file.
func backupName(file, name string) (string, error) {
	if name != numbered {
		return name, nil
	}
	for n := 1; n < 1e6; n++ {
		name := fmt.Sprintf("%s.~%d~", file, n)
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
	}
	return "", wrong("there are too many backups of %s", file)
}

func wrong(format string, args ...any) error {
	errno := syscall.EINVAL
	err := fmt.Errorf(format, args...)
	errors.As(err, &errno)
	return checkpoint.NewError(checkpoint.Args, errno, err)
}
