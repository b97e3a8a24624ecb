// Command jx runs lockerd clusters under faults and judges what their clients were
// told: see package jepsen.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/jepsen/versus"
	"github.com/lockerd/lockerd/jepsen/workload"
)

// Exit statuses. Undecided is its own: it is no pass.
const (
	exitPass      = 0
	exitFail      = 1
	exitUndecided = 3
	exitUsage     = 64
	exitHarness   = 70
)

const usage = `jx - break lock clusters on purpose, and judge what their clients were told

Usage: jx COMMAND [OPTION]...

  run        one run: a cluster, clients, faults, verdict
  ci         the runs of the continuous integration, in about two minutes
  all        every workload under every set of faults
  soak       all faults, run after run, for a long time
  check      judge stored runs again
  replay     do a stored run again: the same seed and schedule
  selftest   build servers with faults in them; each must be caught
  versus     lockersh beside etcdctl lock: lost updates, and holders killed
  serve      browse the stored runs
  table      stored runs as a matrix, in Markdown
  sweep      remove what killed runs may have left
  list       the workloads and faults there are

jx COMMAND --help tells the options.

Exit status:
   0  everything passed
   1  a check failed
   3  undecided: a check did not come to an end, or saw nothing
  64  wrong usage
  70  the harness itself failed

Examples:
  jx run --workload mutex --nemesis partition,kill --time 30s
  jx run --workload set --nemesis pause --nodes 5 --seed 42
  jx check store/*
  jx selftest
`

type command func(ctx context.Context, args []string, out io.Writer) (int, error)

var commands = map[string]command{
	"run": cmdRun, "ci": cmdCI, "all": cmdAll, "soak": cmdSoak, "check": cmdCheck, "replay": cmdReplay,
	insideCommand: cmdInside, workload.HolderCommand: cmdHolder, workload.ProberCommand: cmdProber, workload.RelayCommand: cmdRelay, "selftest": cmdSelftest, "serve": cmdServe, "sweep": cmdSweep, "list": cmdList, "table": cmdTable,
	"versus": cmdVersus, versusInside: cmdVersusInside, versus.IncrementCommand: holderOf(versus.Increment),
	versus.HoldCommand: holderOf(versus.Hold), versus.StampCommand: holderOf(versus.Stamp),
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

var errInterrupted = errors.New("interrupted; everything it had made is removed")

// usageError is a mistake on the command line.
type usageError struct{ error }

func dispatch(ctx context.Context, args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errs, usage)
		return exitUsage
	}
	if args[0] == "--help" || args[0] == "-h" || args[0] == "help" {
		fmt.Fprint(out, usage)
		return exitPass
	}
	run, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(errs, "jx: no command %q: see jx --help\n", args[0])
		return exitUsage
	}
	code, err := run(ctx, args[1:], out)
	var bad usageError
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
		return code
	case errors.As(err, &bad):
		fmt.Fprintf(errs, "jx %s: %v\n", args[0], err)
		return exitUsage
	}
	if ctx.Err() != nil {
		err = errInterrupted
	}
	fmt.Fprintf(errs, "jx %s: %s\n", args[0], strings.ReplaceAll(err.Error(), "\n", "; "))
	return exitHarness
}

// newFlags makes the options of a command.
func newFlags(name, arguments string, out io.Writer) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "Usage: jx %s %s\n\n%s", name, arguments, fs.FlagUsages())
	}
	return fs
}

// parse reads a command line, and says how many arguments may follow.
func parse(fs *pflag.FlagSet, args []string, least, most int) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	if n := fs.NArg(); n < least || n > most {
		return usageError{fmt.Errorf("%d arguments: see jx %s --help", n, fs.Name())}
	}
	return nil
}
