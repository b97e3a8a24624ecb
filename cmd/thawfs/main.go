// Command thawfs thaws file systems, whoever has frozen them.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

// version is set by the linker in releases.
var version = "2.0"

var program = getopt.Program{
	Name: "thawfs", Version: version, Usage: usage, UsageEnd: usageEnd, Statuses: freezing.Statuses,
}

const usage = `thawfs - thaw file systems

Usage: thawfs [OPTION]... MOUNT...
       thawfs [--json] --id ID...

Thaws what freezefs has frozen, and all that was frozen with it; what a guard has left
that was killed; and what others have frozen, as fsfreeze and xfs_freeze do.

Examples:
  thawfs /oracle
  thawfs /data /data/log
  thawfs --dry-run /oracle   what would be thawed
  thawfs --id 91f3a0c2d4e5b677   what was unmounted meanwhile (umount -l); the ID is one
                                 of freezethaw --list

Options:
`

const usageEnd = `
Options may be shortened as long as they are unique, and ignore case.

Environment:
  FREEZER_RUN  the guards' directory, in memory (default freezer in /run, or in
               /dev/shm where /run is on a disk)

Exit status; of several the highest, and all are tried:
    0  thawed
    1  it was not frozen, or somebody else has thawed it, or what was frozen with it
   64  wrong usage
   65  it cannot be known whether it is frozen (with --dry-run)
   66  it is not mounted
   69  the file system cannot be frozen (with --dry-run)
   70  internal error, or one of the device
   74  the output cannot be written; what was thawed is said on standard error
   77  only root may thaw
`

// errNoRight is for who is not root, in the words of what was asked for.
var errNoRight = fmt.Errorf("%w, and see what is frozen", freezing.ErrThaw)

type options struct {
	getopt.Standard
	dryRun, json bool
	ids, mounts  []string
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("thawfs", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringSliceVar(&o.ids, "id", nil, "thaw all that was frozen as `ID,...`")
	fs.BoolVar(&o.dryRun, "dry-run", false, "print what would be thawed, and thaw nothing")
	fs.BoolVar(&o.json, "json", false, "print in JSON")
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
	case len(o.ids) > 0 && (o.dryRun || len(words) > 0):
		return nil, errors.New("--id is for itself: neither for a mount nor for --dry-run")
	case len(o.ids) > 0:
		return o, nil
	}
	o.mounts, err = freezing.Mounts(words)
	return o, err
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	o, err := parse(args)
	switch {
	case err != nil:
		return program.Misused(err)
	case o.Asked():
		return program.Answer(o.Standard, flags(&options{}))
	}
	if os.Geteuid() != 0 {
		return program.Complain(errNoRight)
	}
	if len(o.ids) > 0 {
		return thawIDs(o)
	}
	return thaw(o)
}

// thawed is what has become of a file system.
type thawed struct {
	Mount  string `json:"mount,omitempty"`
	ID     string `json:"id,omitempty"`
	Thawed bool   `json:"thawed"` // or would be
	Error  string `json:"error,omitempty"`
}

// thaw looks at all before it thaws one: several may be frozen as one. Of a single one
// ThawFS itself knows.
func thaw(o *options) int {
	ctx, stop := freezing.Signals()
	defer stop()
	frozen := map[string]bool{}
	code := 0
	all := make([]thawed, len(o.mounts))
	errs := make([]error, len(o.mounts))
	for i, m := range o.mounts {
		if len(o.mounts) == 1 && !o.dryRun {
			break
		}
		s, err := freezer.QueryFS(m)
		frozen[m] = s.Frozen
		switch {
		case o.dryRun && err != nil:
			errs[i] = err
		case o.dryRun && !s.Frozen:
			errs[i] = fmt.Errorf("%s: %w", freezer.OneLine(m), freezer.ErrNotFrozen)
		}
	}
	for i, m := range o.mounts {
		if !o.dryRun {
			err := freezer.ThawFS(ctx, m)
			if !frozen[m] || !errors.Is(err, freezer.ErrNotFrozen) { // else with another one
				errs[i] = err
			}
		}
		all[i] = thawed{Mount: m, Thawed: errs[i] == nil}
		if errs[i] != nil {
			all[i].Error = errs[i].Error()
			code = max(code, program.Complain(errs[i]))
		}
	}
	return max(code, say(o, all))
}

// thawIDs thaws freezes, wherever what they hold is mounted.
func thawIDs(o *options) (code int) {
	ctx, stop := freezing.Signals()
	defer stop()
	all := make([]thawed, len(o.ids))
	for i, id := range o.ids {
		err := freezer.ThawID(ctx, id)
		all[i] = thawed{ID: id, Thawed: err == nil}
		if err != nil {
			all[i].Error = err.Error()
			code = max(code, program.Complain(err))
		}
	}
	return max(code, say(o, all))
}

// say prints what was thawed.
func say(o *options, all []thawed) int {
	if o.json {
		return program.Tell(getopt.JSON(all))
	}
	var text strings.Builder
	for _, t := range all {
		switch {
		case t.Thawed && o.dryRun:
			fmt.Fprintf(&text, "%s: would be thawed\n", freezer.OneLine(t.Mount))
		case t.Thawed:
			fmt.Fprintf(&text, "%s: thawed\n", freezer.OneLine(t.Mount+t.ID))
		}
	}
	return program.Tell(text.String())
}
