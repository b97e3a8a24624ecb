// Lockersh runs a command for as long as it holds a lock of the cluster.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit statuses of our own, after sysexits(3) where it has one.
const (
	exitUsage       = 64
	exitUnavailable = 69
	exitTempFail    = 75
	exitLost        = 76
	exitSuspended   = 79
	exitInternal    = 70
)

var program = getopt.Program{Name: "lockersh", Version: version, Usage: usage, UsageEnd: usageEnd}

func main() {
	job.AtGate()
	checkpoint.AtStage()
	if len(os.Args) > 2 && os.Args[0] == batchName {
		os.Exit(runBatch(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[0] == keeperName {
		os.Exit(keep(os.Args[1]))
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	s, err := read(args)
	if err != nil {
		if e := (*usageError)(nil); errors.As(err, &e) && e.detail != "" {
			fmt.Fprintln(os.Stderr, e.detail)
		}
		fmt.Fprintf(os.Stderr, "%%Error: %v\n", err)
		return exitUsage
	}
	if s.Asked() {
		return program.Answer(s.Standard, flags(&raw{}))
	}
	if s.verbose {
		s.locker.Verbose = os.Stdout
	} else {
		s.locker.Hooks.Retry = func(delay time.Duration, err error) {
			fmt.Fprintf(os.Stderr, "lockersh: no lock server yet: %v; trying again in %.3g s\n", err, delay.Seconds())
		}
	}
	if s.list {
		l, err := client.New(s.locker)
		if err != nil {
			return misused(err)
		}
		return list(l, s.json)
	}
	switch {
	case s.process > 0:
		return claim(s)
	case s.exec:
		return replace(s)
	}
	return hold(s)
}

func misused(err error) int {
	fmt.Fprintf(os.Stderr, "%%Error: %v; see --help\n", err)
	return exitUsage
}

// list prints who holds what.
func list(l *client.Locker, asJSON bool) int {
	ctx := context.Background()
	var err error
	if asJSON {
		var t client.Table
		if t, err = l.Table(ctx); err == nil {
			out := json.NewEncoder(os.Stdout)
			out.SetIndent("", "  ")
			err = out.Encode(t)
		}
	} else {
		var locks []client.Entry
		if locks, err = l.LockList(ctx); err == nil {
			slices.SortFunc(locks, func(a, b client.Entry) int {
				return cmp.Or(cmp.Compare(a.Lock, b.Lock), cmp.Compare(a.Owner, b.Owner))
			})
			for _, e := range locks {
				if _, err = fmt.Printf("%-20s %s\n", e.Lock, e.Owner); err != nil {
					break
				}
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return lockCode(err)
	}
	return 0
}
