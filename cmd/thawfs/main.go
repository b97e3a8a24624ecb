// Command thawfs thaws file systems, whoever has frozen them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit statuses of our own, after sysexits(3) where it has one.
const (
	exitNotFrozen   = 1 // there was nothing to do
	exitUnknown     = 65
	exitNotMounted  = 66
	exitUnsupported = 69
	exitNoRight     = 77
)

var program = getopt.Program{
	Name: "thawfs", Version: version, Usage: usage, UsageEnd: usageEnd,
	Statuses: []getopt.Status{
		{Of: freezer.ErrNotFrozen, Code: exitNotFrozen},
		{Of: freezer.ErrPermission, Code: exitNoRight},
		{Of: errNoRight, Code: exitNoRight},
		{Of: freezer.ErrNotMounted, Code: exitNotMounted},
		{Of: freezer.ErrNotSupported, Code: exitUnsupported},
		{Of: freezer.ErrUnknown, Code: exitUnknown},
	},
}

const usage = `thawfs - thaw file systems

Usage: thawfs [OPTION]... MOUNT...

Thaws what freezefs has frozen, and all that was frozen with it; what a guard has left
that was killed; and what others have frozen, as fsfreeze and xfs_freeze do.

Examples:
  thawfs /oracle
  thawfs /data /data/log
  thawfs --dry-run /oracle   what would be thawed

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
   77  only root may thaw
`

// errNoRight is for who is not root, in the words of what was asked for.
var errNoRight = errors.New("only root may thaw, and see what is frozen")

type options struct {
	getopt.Standard
	dryRun, json bool
	mounts       []string
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("thawfs", pflag.ContinueOnError)
	fs.SortFlags = false
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
	case len(words) == 0:
		return nil, errors.New("no file system specified")
	}
	for _, w := range words {
		if w == "" { // which Abs takes for the current directory
			return nil, errors.New("the name of a file system is empty")
		}
		mount, err := filepath.Abs(w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w, err)
		}
		o.mounts = append(o.mounts, mount)
	}
	return o, nil
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	o, err := parse(args)
	switch {
	case err != nil:
		return program.Misused(err)
	case o.Asked():
		program.Answer(o.Standard, flags(&options{}))
		return 0
	}
	if os.Geteuid() != 0 {
		return program.Complain(errNoRight)
	}
	return thaw(o)
}

// thawed is what has become of a file system.
type thawed struct {
	Mount  string `json:"mount"`
	Thawed bool   `json:"thawed"` // or would be
	Error  string `json:"error,omitempty"`
}

// oneLine quotes a name that would make several of one.
func oneLine(name string) string {
	if strings.ContainsFunc(name, unicode.IsControl) {
		return strconv.Quote(name)
	}
	return name
}

// thaw looks at all before it thaws one: several may be frozen as one. Of a single one
// ThawFS itself knows.
func thaw(o *options) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
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
			errs[i] = fmt.Errorf("%s: %w", oneLine(m), freezer.ErrNotFrozen)
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
	if o.json {
		return max(code, program.PrintJSON(all))
	}
	for _, t := range all {
		switch {
		case t.Thawed && o.dryRun:
			fmt.Printf("%s: would be thawed\n", t.Mount)
		case t.Thawed:
			fmt.Printf("%s: thawed\n", t.Mount)
		}
	}
	return code
}
