package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

const usage = `freezefs - freeze file systems, so that their devices can be copied

Usage: freezefs [-t SECONDS] [OPTION]... MOUNT...
       freezefs -q [--json] MOUNT...

Returns when all that was written to the file systems is on their devices, and does
not change there until they are thawed: by thawfs, or when the time is up. Whoever
writes waits for that; reading goes on. Several are frozen as one, and not at all if
one cannot be; thawfs for one of them thaws them all.

Examples:
  freezefs /oracle && ssh array snapshot vol7; thawfs /oracle
  freezefs -t 10 /data /data/log      for ten seconds at most
  freezefs -q /oracle                 is it frozen, by whom, and until when?
  freezefs --dry-run /data /data/log  what would be done, and whether it may be

MOUNT is a directory; a file that something is mounted on is none.
All mounts and subvolumes of a file system are frozen with it. A guard process holds
the freeze: until the thaw nothing can be unmounted, and if the guard is killed,
thawfs thaws, or at once lockerd with --executors. /, /usr, /var, /run and /tmp, the
file systems of swap files and of lockerd's data, which are those that processes
called lockerd write to, cannot be frozen, nor can what has no device, such as tmpfs
and nfs.

The guard ends with its pid namespace, as of a container, and with its systemd unit or
login session: what it held is thawed then, in a container at once only if lockerd with
--executors uses the same directory for guards, else by the next who freezes, or thawfs.
The first process of a pid namespace has to --wait.

Options:
`

const usageEnd = `
Options may be shortened as long as they are unique, and ignore case.

Environment:
  FREEZEFS_DEFAULT_TIMEOUT  the seconds for -t 0, instead of 60; less than 0 is
                            for ever
  FREEZER_PROTECT           directories whose file systems are never frozen, with
                            colons between them
  LOCKERD_DATA_DIR          lockerd's data (default /var/lib/lockerd)
  FREEZER_RUN               the guards' directory, in memory (default freezer in
                            /run, or in /dev/shm where /run is on a disk)

Exit status:
    0  frozen; with -q: none is frozen
    1  with -q: one is frozen
   64  wrong usage
   65  it cannot be known whether it is frozen
   66  it is not mounted
   69  the file system cannot be frozen, or not by the first process of a pid namespace
   70  internal error, or one of the device
   71  not enough memory
   74  it cannot be said that it is frozen, as the output cannot be written: nothing is
       (but >/dev/null will do)
   75  it is frozen already; or the time was up, or a signal came, before it was
   76  with --wait: it was thawed before its time, by somebody else than thawfs
   77  only root may freeze; or this file system must not be frozen
`

type options struct {
	getopt.Standard
	query, wait  bool
	timeout      string
	protect      []string
	dryRun, json bool
	order        freezer.Order
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("freezefs", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.BoolVarP(&o.query, "query", "q", false, "say whether they are frozen, and change nothing but to wake a guard that somebody has stopped")
	fs.StringVarP(&o.timeout, "timeout", "t", "0", "thaw after so many whole `SECONDS`; 0 is the default, less than 0 never")
	fs.BoolVar(&o.wait, "wait", false, "return only when they are thawed; its end, also by a signal, thaws them")
	fs.StringArrayVar(&o.protect, "protect", nil, "refuse the file system of this `DIRECTORY`; may be given several times")
	fs.BoolVar(&o.dryRun, "dry-run", false, "print what would be frozen, in this order, and freeze nothing")
	fs.BoolVar(&o.json, "json", false, "print in JSON; times are in nanoseconds")
	o.Add(fs)
	return fs
}

// parse reads a command line. An error is one line.
func parse(args []string) (*options, error) {
	o := &options{}
	words, err := getopt.Parse(flags(o), args, true)
	switch {
	case err != nil || o.Asked():
		return o, err
	case o.query && o.dryRun:
		return nil, errors.New("--query and --dry-run exclude each other")
	case o.query && o.wait:
		return nil, errors.New("--query and --wait exclude each other")
	}
	mounts, err := freezing.Mounts(words)
	if err != nil {
		return nil, err
	}
	o.order = freezer.Order{Detach: !o.wait}
	seconds, err := strconv.Atoi(o.timeout)
	if err != nil || seconds > 1_000_000_000 {
		return nil, fmt.Errorf("--timeout %s: not a whole number of seconds up to 1000000000", o.timeout)
	}
	o.order.Timeout = time.Duration(max(seconds, -1)) * time.Second
	if seconds == 0 {
		if o.order.Timeout, err = freezer.DefaultFSTimeout(); err != nil {
			return nil, err
		}
	}
	for _, mount := range mounts {
		o.order.Targets = append(o.order.Targets, freezer.FileSystem(mount))
	}
	o.protect = append(o.protect, cmp.Or(os.Getenv("LOCKERD_DATA_DIR"), "/var/lib/lockerd"))
	for _, p := range o.protect {
		dir, err := freezing.Path(p)
		if err != nil {
			return nil, fmt.Errorf("--protect %s: %w", p, err)
		}
		o.order.Protect = append(o.order.Protect, dir)
	}
	return o, o.order.Validate()
}
