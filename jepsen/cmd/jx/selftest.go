package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/overlay"
	"github.com/lockerd/lockerd/jepsen/run"
)

// catchTime is how long a deliberate fault may go unseen.
const catchTime = 60 * time.Second

func cmdSelftest(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("selftest", "[OPTION]... [MUTANT]...", out)
	o := usual()
	o.Time = 15 * time.Second
	o.loadFlags(fs) // the cluster is what the mutant needs
	fs.Lookup("seed").Usage = "before that of the first run of each"
	if err := parse(fs, args, 0, len(overlay.Mutants)); err != nil {
		return exitPass, err
	}
	for _, name := range fs.Args() {
		if !slices.ContainsFunc(overlay.Mutants, func(m overlay.Mutant) bool { return m.Name == name }) {
			return exitUsage, usageError{fmt.Errorf("no mutant %q", name)}
		}
	}
	fmt.Fprintf(out, catchRow, "mutant", "expected check", "seconds", "caught by", "")
	missed := 0
	for _, m := range overlay.Mutants {
		if fs.NArg() > 0 && !slices.Contains(fs.Args(), m.Name) {
			continue
		}
		caught, err := catch(ctx, o, m, out)
		if err != nil {
			return exitHarness, err
		}
		if !caught {
			missed++
		}
	}
	if missed > 0 {
		fmt.Fprintf(out, "%d deliberate faults were not caught by the check that is there for them\n", missed)
		return exitFail, nil
	}
	return exitPass, nil
}

// catchRow is a line of the table: the seconds are those in which clients were at work.
const catchRow = "%-14s %-26s %7s  %s%s\n"

// catch runs a mutant until the check that is there for it fails, or its time is over.
func catch(ctx context.Context, o options, m overlay.Mutant, out io.Writer) (bool, error) {
	patches := m.Patches
	if slices.ContainsFunc(m.Nemesis, nemesis.NeedsClock) {
		patches = append(slices.Clone(patches), overlay.Clock...)
	}
	var err error
	o.Binary, err = build(ctx, filepath.Join(o.root, "bin"), "lockerd-"+m.Name, "lockerd", patches, o.Race)
	if err != nil {
		return false, err
	}
	o.Workload, o.Nemesis, o.Nodes, o.Clocks, o.NoGuard = m.Workload, m.Nemesis, m.Nodes, true, m.NoGuard
	if m.Rate > 0 {
		o.Rate = m.Rate
	}
	if m.Clients > 0 {
		o.Clients = m.Clients
	}
	if m.Rhythm != (gen.Rhythm{}) {
		o.Rhythm = m.Rhythm
	}
	var spent time.Duration
	var others []string
	for spent < catchTime {
		o.Seed++
		if err := o.prepare(ctx); err != nil {
			return false, err
		}
		code, said, err := quietly(o.Config)
		if err != nil {
			return false, fmt.Errorf("mutant %s: %w: %s", m.Name, err, said)
		}
		spent += o.Time
		switch code {
		case exitFail:
			by, err := failed(o.Store)
			if err != nil {
				return false, err
			}
			if i := slices.Index(by, m.Check); i >= 0 {
				beside := slices.Delete(by, i, i+1)
				also := ""
				if len(beside) > 0 {
					also = "; also by " + strings.Join(beside, ", ")
				}
				fmt.Fprintf(out, catchRow, m.Name, m.Check, fmt.Sprint(spent.Seconds()), "it", also)
				return true, nil
			}
			others = append(others, by...)
		case exitPass, exitUndecided:
		default:
			return false, fmt.Errorf("mutant %s: status %d: %s", m.Name, code, said)
		}
	}
	by := "MISSED: "
	if len(others) > 0 {
		slices.Sort(others)
		by = fmt.Sprintf("MISSED, caught by another (%s): ", strings.Join(slices.Compact(others), ", "))
	}
	fmt.Fprintf(out, catchRow, m.Name, m.Check, fmt.Sprint(spent.Seconds()), by, m.About)
	return false, nil
}

// quietly is one without its output, which it returns.
func quietly(c run.Config) (int, string, error) {
	var said bytes.Buffer
	code, err := oneTo(c, &said)
	return code, said.String(), err
}

// failed lists the checks that a stored run has failed.
func failed(dir string) ([]string, error) {
	results, err := run.LoadResults(dir)
	if err != nil {
		return nil, err
	}
	var by []string
	for _, r := range results {
		if r.Verdict == check.Fail {
			by = append(by, r.Check)
		}
	}
	if len(by) == 0 {
		return nil, errors.New("the run failed, but none of its checks did")
	}
	return by, nil
}
