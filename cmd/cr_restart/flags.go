package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/getopt"
)

const usage = `cr_restart - start processes again from a checkpoint file

Usage: cr_restart [OPTION]... [FILE]

Restarts what cr_checkpoint has saved. cr_restart becomes the parent of the eldest
process, waits for it, and ends as it does: with its exit status, or by the same
signal.

Examples:
  cr_restart context.4711
  cr_restart --relocate /home/ann=/scratch/ann context.4711
  cr_restart --no-restore-pid context.4711         one more, beside the first
  cr_restart --stop context.4711                   to look at it with a debugger
  cr_restart --run-on-fail-temp 'exit 75' --run-on-success 'touch started' context.4711
  ssh store cat context.4711 | cr_restart --fd 0

Options:
`

const usageEnd = `
Where options exclude each other the last one counts. OLDPATH is the beginning of a
canonical path, in whole components; the first relocation that matches counts, and in
both paths \= is = and \\ is \.

Hooks are commands for /bin/sh. One that fails gives cr_restart its exit status:
on a failure nothing else is said then; on success cr_restart does not wait.

Environment:
  LOCKERD_CRIU  the program criu (else that of scripts/install-criu, or in PATH)
  TMPDIR        where the file is unpacked if not beside it

Exit status: that of the eldest process, or if the restart failed the number of the
error (errno(3)):
   1 EPERM   it takes root; the file could be another user's (see --trust)
   2 ENOENT  the file, or a file that the job needs, is missing
  16 EBUSY   a number that the job needs is in use
  22 EINVAL  wrong usage; the file is damaged, or is for another kind of machine
  37 ENOLCK  its lock is kept for it: see lockctl restart (or --without-lock)
  98 EADDRINUSE an address or port that it had is in use
 116 ESTALE  a file that the job needs is not the one that it was
`

// How much is told of CRIU's messages.
const (
	kmsgNone = iota
	kmsgError
	kmsgWarning
)

type options struct {
	plan          checkpoint.Plan
	file, dir     string
	fd            int
	omit          checkpoint.Omit
	success       string
	failure       map[checkpoint.Class]string
	kmsg          int
	keepPIDs      bool
	quiet         bool
	help, version bool
}

// failures are the classes by the names that hooks have.
var failures = []checkpoint.Class{checkpoint.Args, checkpoint.Temp, checkpoint.Env, checkpoint.Perm}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("cr_restart", pflag.ContinueOnError)
	fs.SortFlags = false
	act := getopt.Actions{FlagSet: fs}
	fs.BoolVarP(&o.help, "help", "?", false, "print this text")
	fs.BoolVarP(&o.version, "version", "v", false, "print the version")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "print no errors or warnings")
	fs.StringVarP(&o.file, "file", "f", "", "the checkpoint is in `FILE`")
	act.With("fd", "F", "N", "the checkpoint is read from the open file descriptor N, which may be a pipe", getopt.Descriptor(&o.fd))
	fs.StringVarP(&o.dir, "dir", "d", "", "the checkpoint is in `DIR`, in a file for each process (not implemented, as in BLCR)")

	signal := func(s syscall.Signal) func() { return func() { o.plan.Signal = s } }
	act.Alone("run", "", "let the processes run (default)", signal(0))
	act.With("signal", "S", "NUM", "send all processes the signal NUM", func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 64 {
			return errors.New("it is no signal's number")
		}
		o.plan.Signal = syscall.Signal(n)
		return nil
	})
	act.Alone("stop", "", "leave all processes stopped (SIGSTOP)", signal(syscall.SIGSTOP))
	act.Alone("term", "", "send all processes SIGTERM", signal(syscall.SIGTERM))
	act.Alone("abort", "", "send all processes SIGABRT", signal(syscall.SIGABRT))
	act.Alone("kill", "", "send all processes SIGKILL", signal(syscall.SIGKILL))
	act.Alone("cont", "", "send all processes SIGCONT: those run that were stopped when checkpointed", signal(syscall.SIGCONT))

	omit := func(v checkpoint.Omit) func() { return func() { o.omit = v } }
	act.Alone("omit-maybe", "", "leave cr_restart out of later checkpoints if it is the eldest process there (default)", omit(checkpoint.OmitMaybe))
	act.Alone("omit-always", "", "leave cr_restart out of later checkpoints; where it is not the eldest they fail", omit(checkpoint.OmitAlways))
	act.Alone("omit-never", "", "never leave cr_restart out of later checkpoints", omit(checkpoint.OmitNever))

	hook := func(classes ...checkpoint.Class) func(string) error {
		return func(text string) error {
			for _, c := range classes {
				o.failure[c] = text
			}
			return nil
		}
	}
	fs.StringVar(&o.success, "run-on-success", "", "run `CMD` as soon as the processes run")
	act.With("run-on-fail-args", "", "CMD", "run CMD if the arguments are invalid, the missing or unreadable FILE included", hook(checkpoint.Args))
	act.With("run-on-fail-temp", "", "CMD", "run CMD if it may succeed later: a process number is in use", hook(checkpoint.Temp))
	act.With("run-on-fail-env", "", "CMD", "run CMD if files that the job needs, or CRIU, are missing or inaccessible", hook(checkpoint.Env))
	act.With("run-on-fail-perm", "", "CMD", "run CMD if it can never succeed: the file is damaged", hook(checkpoint.Perm))
	act.With("run-on-failure", "", "CMD", "run CMD on any failure", hook(failures...))

	act.With("relocate", "", "OLDPATH=NEWPATH", fmt.Sprintf("look for files and directories below OLDPATH in NEWPATH; at most %d times", checkpoint.MaxRelocations),
		func(text string) error {
			r, err := checkpoint.ParseRelocation(text)
			o.plan.Relocations = append(o.plan.Relocations, r)
			return err
		})

	pair := func(name, yes, no string, to *bool) {
		act.Alone("restore-"+name, "", yes, func() { *to = true })
		act.Alone("no-restore-"+name, "", no, func() { *to = false })
	}
	pair("pid", "processes and threads have the numbers they had (default)",
		"they have other numbers, seen from outside, and the old ones for each other: they live in a pid namespace of their own", &o.keepPIDs)
	pair("pgid", "they have the process groups they had", "they join the process group of cr_restart (default)", &o.plan.KeepGroups)
	pair("sid", "they have the sessions they had", "they join the session of cr_restart (default)", &o.plan.KeepSessions)

	fs.BoolVar(&o.plan.Suspended, "without-lock", false, "restart a job for which lockctl keeps its lock, without the lock")
	fs.BoolVar(&o.plan.Trusted, "trust", false, "restart a file that another user than root could have written: whoever wrote it decides what is run")

	kmsg := func(v int) func() { return func() { o.kmsg = v } }
	act.Alone("kmsg-none", "", "print no messages of CRIU, which has the part of BLCR's kernel module (default)", kmsg(kmsgNone))
	act.Alone("kmsg-error", "", "print CRIU's messages if the restart fails", kmsg(kmsgError))
	act.Alone("kmsg-warning", "", "print CRIU's messages, also its warnings when it succeeds", kmsg(kmsgWarning))
	return fs
}

// parse reads a command line. With an error the hooks and --quiet are valid all the
// same, wherever they stand.
func parse(args []string) (*options, error) {
	o := &options{fd: -1, omit: checkpoint.OmitMaybe, failure: map[checkpoint.Class]string{}, keepPIDs: true}
	fs := flags(o)
	err := fs.Parse(args)
	if err != nil {
		hooksOf(o, args)
		return o, wrong("%s; see --help", err)
	}
	if o.help || o.version {
		return o, nil
	}
	o.plan.NewPIDs = !o.keepPIDs
	o.plan.OurTime = o.omit == checkpoint.OmitNever
	words := fs.Args()
	given := 0
	for _, name := range []string{"file", "fd", "dir"} {
		if fs.Changed(name) {
			given++
		}
	}
	switch {
	case fs.Changed("dir"):
		return o, wrong("--dir is not implemented: a checkpoint is one file")
	case given > 1 || given == 1 && len(words) > 0 || len(words) > 1:
		return o, wrong("one checkpoint is restarted at a time; see --help")
	case len(words) == 1:
		o.file = words[0]
	case given == 0:
		return o, wrong("no checkpoint file specified; see --help")
	}
	if fs.Changed("fd") {
		if _, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETFD, 0); err != nil {
			return o, wrong("file descriptor %d: %w", o.fd, err)
		}
		unix.CloseOnExec(o.fd)
		o.plan.Reader = os.NewFile(uintptr(o.fd), "fd "+strconv.Itoa(o.fd))
		return o, nil
	}
	if o.file == "" {
		return o, wrong("the checkpoint file has no name")
	}
	o.plan.File = o.file
	return o, nil
}

// hooksOf reads what concerns errors of a command line that has some.
func hooksOf(o *options, args []string) {
	for i, arg := range args {
		if arg == "--" {
			return
		}
		if arg == "-q" || arg == "--quiet" {
			o.quiet = true
		}
		name, value, given := strings.Cut(arg, "=")
		if name != "--run-on-fail-args" && name != "--run-on-failure" {
			continue
		}
		if !given && i+1 < len(args) {
			value = args[i+1]
		}
		o.failure[checkpoint.Args] = value
	}
}

func wrong(format string, args ...any) error {
	errno := syscall.EINVAL
	err := fmt.Errorf(format, args...)
	errors.As(err, &errno)
	return checkpoint.NewError(checkpoint.Args, errno, err)
}
