// Command pidwatch runs a command, and ends it when another process ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
	"github.com/lockerd/lockerd/pidprobe"
)

// version is set by the build.
var version = "2.0"

// Exit codes of our own, where the command's cannot be meant: sysexits(3), and
// what shells use for a command that cannot be executed or found.
const (
	exitUsage    = 64
	exitNoHost   = 68
	exitInternal = 70
	exitCannot   = 126
)

type options struct {
	help, version, debug bool

	cd, host, port        string
	pid, foreground       string
	signal, killer        string
	hasForeground, hasPID bool
	words                 []string
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("pidwatch", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&o.pid, "pid", "", "watch the process of this `number`")
	fs.StringVar(&o.host, "host", "", "`host` of that process (default this one)")
	fs.StringVar(&o.port, "port", "", "`port` of pidstatd or lockerd there, a number or the name of a service (default the service pidstatd, else 1752)")
	fs.StringVar(&o.cd, "cd", "", "change to this `directory` first, if it is to be had")
	fs.StringVar(&o.signal, "signal", "HUP", "send this `signal`: a name, with or without SIG, or a number, with or without -")
	fs.StringVar(&o.killer, "killer", "", "instead of kill call this `program`, with -SIGNAL and the number of the command's process")
	fs.StringVar(&o.foreground, "foreground", "", "run no command, but end the process of this `number` of this host")
	fs.BoolVar(&o.debug, "debug", false, "tell on stderr what the watch does")
	fs.BoolVar(&o.version, "version", false, "print the version")
	fs.BoolVar(&o.help, "help", false, "print this text")
	return fs
}

const helpHead = `pidwatch - run a command, and end it when another process ends

Usage: pidwatch [--host HOST] --pid PID [OPTION]... COMMAND...
       pidwatch [--host HOST] --pid PID [OPTION]... --foreground PID

Becomes /bin/sh -c with the words of the command, joined by one space each, and
watches PID in the background. When PID ends, the command gets SIGHUP, again each
second until it ends. When the command ends, so does the watch. With --foreground,
returns at once, and does the same to a process that runs already.

A process of this host is watched directly, and its end acted upon at once. For
another host its pidstatd or lockerd is asked once a second, and tells of the end
at once if it is not older than this program. As long as none answers, nothing
happens: PID may well be running.

Options:
`

const helpTail = `
Options may be shortened, may start with one dash, and end at the first other word.

Exit status: that of the command, 0 with --foreground, and
   64  wrong usage, in which case the command is not run
   68  there is no such host, likewise
   70  the watch cannot be set up, likewise
  126  there is no /bin/sh

Examples:
  ssh other pidwatch --host $HOSTNAME --pid $$ make     ends with this shell
  pidwatch --host build7 --pid 4711 sleep 9999999; echo 4711 has ended
  pidwatch --pid 4711 --signal TERM --foreground 4712   from here on 4712 follows
`

// usage is a mistake on the command line.
type usage struct{ error }

func misuse(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

func main() {
	if stage := os.Getenv(stageEnv); stage != "" {
		os.Exit(runStage(stage, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	fs := flags(&o)
	var err error
	if o.words, err = getopt.Parse(fs, args, false); err != nil {
		return complain(stderr, misuse("%v, see --help", err))
	}
	switch {
	case o.help:
		fmt.Fprint(stdout, helpHead, fs.FlagUsagesWrapped(80), helpTail)
		return 0
	case o.version:
		fmt.Fprintf(stdout, "Version: %s\n", version)
		return 0
	}
	o.hasPID, o.hasForeground = fs.Changed("pid"), fs.Changed("foreground")
	t, err := o.task(context.Background())
	if err != nil {
		return complain(stderr, err)
	}
	if o.hasForeground {
		if err := startWatch(t, nil); err != nil {
			return complain(stderr, err)
		}
		return 0
	}
	enter(o.cd, stderr)
	// Its other end closes when this process becomes the command.
	started, hold, err := os.Pipe()
	if err != nil {
		return complain(stderr, err)
	}
	defer hold.Close()
	if err := startWatch(t, started); err != nil {
		return complain(stderr, err)
	}
	started.Close()
	argv := job.Shell(o.words)
	keepIgnored()
	err = syscall.Exec(argv[0], argv, os.Environ())
	fmt.Fprintf(stderr, "pidwatch: execute %s: %v\n", argv[0], err)
	return exitCannot
}

// task checks the options, and what they name as far as it is to be found here.
func (o *options) task(ctx context.Context) (task, error) {
	t := task{Host: o.host, Debug: o.debug, Foreground: int32(os.Getpid())}
	var err error
	switch {
	case !o.hasPID:
		return t, misuse("--pid not specified")
	case o.hasForeground && len(o.words) > 0:
		return t, misuse("--foreground option does not take additional command arguments")
	case !o.hasForeground && (len(o.words) == 0 || o.words[0] == ""):
		return t, misuse("No command specified")
	}
	if t.PID, err = pidprobe.ParsePID(o.pid); err != nil {
		return t, misuse("--pid %q: %w", o.pid, err)
	}
	if o.hasForeground {
		if t.Foreground, err = pidprobe.ParsePID(o.foreground); err != nil {
			return t, misuse("--foreground %q: %w", o.foreground, err)
		}
	}
	if t.Signal, err = job.ParseSignal(o.signal); err != nil {
		return t, misuse("--signal: %w", err)
	}
	t.SignalName = strings.TrimPrefix(strings.ToUpper(strings.TrimPrefix(o.signal, "-")), "SIG")
	if t.Port, err = pidprobe.Port(ctx, o.port); err != nil {
		return t, misuse("--port: %w", err)
	}
	if o.killer != "" {
		if t.Killer, err = exec.LookPath(o.killer); err == nil || errors.Is(err, exec.ErrDot) {
			t.Killer, err = filepath.Abs(t.Killer)
		}
		if err != nil {
			return t, misuse("--killer: %w", err)
		}
	}
	switch {
	case t.Host == "":
		t.Host = "localhost"
	case !(&pidprobe.Client{}).Local(t.Host) && net.ParseIP(t.Host) == nil:
		t.Names = []string{client.FQDN()} // may take a second to find out
	}
	return t, nil
}

// keepIgnored hands on what a shell without job control ignores for what it puts
// into the background: the Go runtime keeps SIG_IGN for SIGHUP and SIGINT alone,
// but SIGQUIT is ignored in the same breath as SIGINT (POSIX.1-2024, 2.11).
func keepIgnored() {
	if signal.Ignored(syscall.SIGINT) {
		signal.Ignore(syscall.SIGQUIT)
	}
}

// enter changes to a directory if it can. The command is run in any case.
func enter(dir string, stderr io.Writer) {
	if dir == "" {
		return
	}
	if err := os.Chdir(dir); err != nil {
		fmt.Fprintf(stderr, "pidwatch: staying where we are: %v\n", err)
		return
	}
	if !filepath.IsAbs(dir) {
		if dir, _ = os.Getwd(); dir == "" {
			os.Unsetenv("PWD")
			return
		}
	}
	os.Setenv("PWD", filepath.Clean(dir))
}

// complain prints one line about what keeps the command from being run.
func complain(w io.Writer, err error) int {
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	var u usage
	switch {
	case errors.As(err, &u):
		fmt.Fprintf(w, "%%Error: %s\n", line)
		return exitUsage
	case errors.Is(err, pidprobe.ErrNoHost):
		fmt.Fprintf(w, "%%Error: %s\n", line)
		return exitNoHost
	}
	fmt.Fprintf(w, "pidwatch: set up the watch: %s\n", line)
	return exitInternal
}
