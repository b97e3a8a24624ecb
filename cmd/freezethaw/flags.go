package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

const usage = `freezethaw - run a command while processes stand still

Usage: freezethaw TARGET... [OPTION]... -- COMMAND [ARGUMENT]...
       freezethaw TARGET... --dry-run [--json]
       freezethaw --list [--json]
       freezethaw --recover [--json]

Stops what the targets name, runs the command, and lets all go on when the
command ends. If freezethaw is killed, or the time is up, a guard lets them go on.

Examples:
  freezethaw --all -- mv library.so.new library.so    nobody sees half of it
  freezethaw --all --dry-run                          what that would stop
  freezethaw --tree 4711 --timeout 5 -- gcore 4711
  freezethaw --cgroup /sys/fs/cgroup/batch -- fio scan.fio
  freezethaw --pid 17,23 --partial -- ls -l /proc/17/fd

Never stopped are freezethaw, its command, the processes that it was started by,
init and the kernel's threads. What was stopped before stays stopped.

The command had better do little: what it writes to a terminal is shown by a
process that may stand still, and it then waits until the time is up. Signals are
passed on to it; but PIPE thaws, and ends it.

Options:
`

const usageEnd = `
Options may be shortened as long as they are unique, and ignore case.
SECONDS may have a fraction, or a unit as in 90s, 5m, 2h.

Environment:
  FREEZER_RUN  the guards' directory, in memory (default freezer in /run, or in
               /dev/shm where /run is on a disk)

Exit status: the command's own, 128+n if signal n ended it, and
   64  wrong usage
   66  there is no such process, session or cgroup
   70  internal error
   74  the output of --list, --dry-run or --recover cannot be written
   75  it cannot be frozen now: something does not stop, or another guard has
       it; the command was not run
   76  it was thawed before the command had ended, which was ended because of
       that: the time was up, or the guard was killed; or somebody else let a
       process go on, which is found out when the command has ended
   77  only root may freeze, thaw, and see what is frozen
  126  the command cannot be executed
  127  there is no such command
`

type options struct {
	getopt.Standard
	all                bool
	pids, trees        []int
	sessions           []int
	cgroups            []string
	partial, ancestors bool
	timeout, patience  getopt.SignedSeconds
	dryRun, json       bool
	list, recover      bool
	verbose            bool
	order              freezer.Order
	command            []string
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("freezethaw", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.BoolVar(&o.all, "all", false, "target: all user processes")
	fs.IntSliceVar(&o.pids, "pid", nil, "target: the processes `PID,...`")
	fs.IntSliceVar(&o.trees, "tree", nil, "target: the process `PID` and all its descendants")
	fs.IntSliceVar(&o.sessions, "session", nil, "target: all processes of the session `SID`")
	fs.StringArrayVar(&o.cgroups, "cgroup", nil, "target: the cgroup (version 2) of this `DIRECTORY`, frozen by the kernel, which no process notices")
	fs.BoolVar(&o.partial, "partial", false, "run the command though something does not stop")
	fs.BoolVar(&o.ancestors, "ancestors", false, "stop those as well that freezethaw was started by, if they are of the target")
	o.timeout = getopt.SignedSeconds(freezer.DefaultTimeout)
	fs.Var(&o.timeout, "timeout", "let all go on after so long, and end the command; 0 is 60, less than 0 never")
	o.patience = getopt.SignedSeconds(freezer.DefaultPatience)
	fs.Var(&o.patience, "patience", "how long a process may wait for a disk and not stop")
	fs.BoolVar(&o.dryRun, "dry-run", false, "print what would be stopped, and run nothing")
	fs.BoolVar(&o.list, "list", false, "print what is frozen now by whom, and until when")
	fs.BoolVar(&o.recover, "recover", false, "thaw what killed guards have left; every freeze does that first")
	fs.BoolVar(&o.json, "json", false, "print in JSON")
	fs.BoolVar(&o.verbose, "verbose", false, "tell afterwards what was frozen, and how long that took")
	o.Add(fs)
	return fs
}

// parse reads a command line. An error is one line.
func parse(args []string) (*options, error) {
	o := &options{}
	words, err := getopt.Parse(flags(o), args, false)
	if err != nil || o.Asked() {
		return o, err
	}
	o.command = words
	if o.list || o.recover {
		named := o.all || len(o.pids)+len(o.trees)+len(o.sessions)+len(o.cgroups) > 0
		if o.list && o.recover || o.dryRun || named || len(words) > 0 {
			return nil, errors.New("--list and --recover stand alone: they are for all that is frozen")
		}
		return o, nil
	}
	o.order = freezer.Order{
		Partial: o.partial, Ancestors: o.ancestors,
		Timeout: time.Duration(o.timeout), Patience: time.Duration(o.patience),
	}
	if o.order.Targets, err = targets(o); err != nil {
		return nil, err
	}
	switch {
	case len(o.order.Targets) == 0:
		return nil, errors.New("say what is to stand still: --all, --pid, --tree, --session or --cgroup")
	case o.dryRun && len(words) > 0:
		return nil, errors.New("--dry-run runs no command")
	case o.dryRun:
	case len(words) == 0 || words[0] == "":
		return nil, errors.New("no command specified")
	case o.json:
		return nil, errors.New("--json is for --dry-run, --list and --recover: otherwise all output is the command's")
	}
	return o, o.order.Validate()
}

func targets(o *options) (all []freezer.Target, err error) {
	if o.all {
		all = append(all, freezer.Machine())
	}
	if len(o.pids) > 0 {
		all = append(all, freezer.Processes(o.pids...))
	}
	for _, pid := range o.trees {
		all = append(all, freezer.Tree(pid))
	}
	for _, sid := range o.sessions {
		all = append(all, freezer.Session(sid))
	}
	for _, dir := range o.cgroups {
		abs, err := freezing.Path(dir)
		if err != nil {
			return nil, fmt.Errorf("--cgroup %s: %w", dir, err)
		}
		all = append(all, freezer.Cgroup(abs))
	}
	return all, nil
}
