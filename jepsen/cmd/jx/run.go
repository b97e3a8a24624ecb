package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/overlay"
	"github.com/lockerd/lockerd/jepsen/report"
	"github.com/lockerd/lockerd/jepsen/run"
	"github.com/lockerd/lockerd/jepsen/workload"
)

// options are those of all commands that run clusters.
type options struct {
	run.Config
	jobs  int    // runs at a time, where there are many
	spare bool   // keep of runs that passed no more than the figures
	root  string // directory of all stored runs
}

// usual are the defaults of most commands.
func usual() options {
	return options{Config: run.Config{Nodes: 3, Clients: 10, Locks: 5, Rate: 200, Time: 20 * time.Second}, root: "store"}
}

// flags makes the options; what they are set to is their default.
func (o *options) flags(fs *pflag.FlagSet) {
	fs.IntVar(&o.Nodes, "nodes", o.Nodes, "`number` of servers")
	fs.StringVar(&o.Binary, "lockerd", o.Binary, "test this `program`; default: built from this source tree")
	fs.BoolVar(&o.Snapshots, "snapshots", o.Snapshots, "build it to take a snapshot every 16 KiB of log")
	o.loadFlags(fs)
}

// loadFlags makes those that do not choose the cluster.
func (o *options) loadFlags(fs *pflag.FlagSet) {
	fs.IntVar(&o.Clients, "clients", o.Clients, "`number` of clients")
	fs.IntVar(&o.Locks, "locks", o.Locks, "`number` of locks")
	fs.Float64Var(&o.Rate, "rate", o.Rate, "actions a second that all clients together try to do")
	fs.DurationVar(&o.Time, "time", o.Time, "how `long` there are faults in each run")
	fs.Uint64Var(&o.Seed, "seed", o.Seed, "of the schedule; 0 takes one at random and prints it")
	fs.BoolVar(&o.Race, "race", o.Race, "build it with the race detector")
	fs.StringVar(&o.root, "store", o.root, "`directory` for what runs leave to look at")
}

func cmdRun(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("run", "[OPTION]...", out)
	o := usual()
	fs.StringVar(&o.Workload, "workload", "mutex", "what clients do; see jx list")
	fs.StringSliceVar(&o.Nemesis, "nemesis", nil, "faults, with commas between; all for every one but damaged files; default none")
	retries := fs.String("retries", "on", "on: clients repeat until they know; off: they speak the line protocol, and ask `once`")
	fs.BoolVar(&o.NoGuard, "no-guard", false, "let the register take writes with old fences, as a control")
	o.flags(fs)
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if len(o.Nemesis) == 1 && o.Nemesis[0] == "all" {
		o.Nemesis = nemesis.Usual(o.Far())
	}
	switch *retries {
	case "on", "off":
		o.Raw = *retries == "off"
	default:
		return exitUsage, usageError{fmt.Errorf("--retries %s: on or off", *retries)}
	}
	o.Clocks = slices.ContainsFunc(o.Nemesis, nemesis.NeedsClock)
	if err := o.Validate(); err != nil {
		return exitUsage, usageError{err}
	}
	if err := o.prepare(ctx); err != nil {
		return exitHarness, err
	}
	return one(o.Config)
}

// prepare completes the configuration: the program under test, the seed, the place.
func (o *options) prepare(ctx context.Context) error {
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1 << 32)
	}
	var err error
	if o.root, err = filepath.Abs(o.root); err != nil {
		return err
	}
	if o.Binary == "" {
		if o.Binary, err = o.build(ctx); err != nil {
			return err
		}
	}
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return err
	}
	if _, err := exec.LookPath(o.Binary); err != nil { // of a path, it looks whether that can be run
		return usageError{fmt.Errorf("--lockerd: %w", err)}
	}
	if _, err := os.Stat(o.Pidstatd); o.Far() && err != nil {
		if o.Pidstatd, err = build(ctx, filepath.Join(o.root, "bin"), "pidstatd", "pidstatd", nil, false); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(o.Nemesis, nemesis.NeedsClock) {
		if has, err := overlay.HasClock(o.Binary); err != nil {
			return err
		} else if !has {
			return fmt.Errorf("%s has no clock that can be set, and %v need one: leave them out, or --lockerd", o.Binary, o.Nemesis)
		}
	}
	o.Commit = commit(ctx)
	return o.place()
}

// place makes the directory of a run.
func (o *options) place() error {
	name := fmt.Sprintf("%s-%s-%s-%d", time.Now().Format("20060102-150405"), o.Workload, brief(o.Nemesis), o.Seed)
	o.Store = filepath.Join(o.root, name)
	if err := os.MkdirAll(o.Store, 0o755); err != nil {
		return fmt.Errorf("make a place for what the run leaves: %w", err)
	}
	return nil
}

func brief(kinds []string) string {
	switch len(kinds) {
	case 0:
		return "none"
	case 1, 2, 3:
		return strings.Join(kinds, "+")
	}
	return fmt.Sprintf("%d-faults", len(kinds))
}

// build builds the server that the options want, and says what it is for.
func (o *options) build(ctx context.Context) (string, error) {
	var patches []overlay.Patch
	suffix := ""
	if o.Snapshots {
		patches = append(patches, overlay.Snapshots...)
		suffix += "-snapshots"
	}
	if slices.ContainsFunc(o.Nemesis, nemesis.NeedsClock) {
		patches = append(patches, overlay.Clock...)
		suffix += "-clock"
		o.Clocks = true
	}
	if o.Race {
		suffix += "-race"
	}
	return build(ctx, filepath.Join(o.root, "bin"), "lockerd"+suffix, "lockerd", patches, o.Race)
}

// buildPrefix begins the names of directories with patched copies of sources.
const buildPrefix = run.Prefix + "build-"

// build builds a program with some patches, under a name of its own.
func build(ctx context.Context, dir, name, program string, patches []overlay.Patch, race bool) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree (go list -m): %w; or give a --lockerd", err)
	}
	root := strings.TrimSpace(string(out))
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	if len(patches) > 0 {
		// Not in the source tree, where other tools would find the copies.
		tmp, err := os.MkdirTemp("", buildPrefix)
		if err != nil {
			return "", fmt.Errorf("build %s: %w", name, err)
		}
		defer os.RemoveAll(tmp)
		more, err := overlay.Write(ctx, root, filepath.Join(tmp, "o"), patches)
		if err != nil {
			return "", err
		}
		args = append(args, more...)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/"+program)...)
	cmd.Dir = root
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, b)
	}
	return path, nil
}

// commit names the source, as far as it can be known.
func commit(ctx context.Context) string {
	b, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// one does a run in a sandbox of its own.
func one(c run.Config) (int, error) { return oneTo(c, os.Stdout) }

func oneTo(c run.Config, out io.Writer) (int, error) {
	if err := run.SaveConfig(c); err != nil {
		return exitHarness, err
	}
	code, err := run.Sandbox(out, insideCommand, c.Store)
	if err != nil {
		return exitHarness, err
	}
	return code, nil
}

// insideCommand is what the program is called with inside the sandbox, with the directory
// of the run.
const insideCommand = "inside"

// cmdInside does the run that the program outside has prepared.
func cmdInside(ctx context.Context, args []string, out io.Writer) (int, error) {
	if len(args) != 1 {
		return exitUsage, usageError{errors.New("this command is for jx itself: see jx --help")}
	}
	c, err := run.LoadConfig(args[0])
	if err != nil {
		return exitHarness, err
	}
	fmt.Fprintf(out, "%s under %s, seed %d, %v ... ", c.Workload, brief(c.Nemesis), c.Seed, c.Time)
	in, err := run.Run(ctx, c)
	if err != nil {
		fmt.Fprintln(out, "broken off")
		return exitHarness, fmt.Errorf("%w (what was recorded is in %s)", err, c.Store)
	}
	return judge(c, in, out)
}

// cmdHolder is a process that holds a lock, started by the fenced workload.
func cmdHolder(_ context.Context, args []string, out io.Writer) (int, error) {
	return exitPass, workload.Holder(args, os.Stdin, out)
}

// cmdProber is a process that may be frozen, started by the freeze workload.
func cmdProber(_ context.Context, args []string, out io.Writer) (int, error) {
	return exitPass, workload.Prober(args, os.Stdin, out)
}

// cmdRelay is the process that asks for a freeze.
func cmdRelay(_ context.Context, args []string, out io.Writer) (int, error) {
	return exitPass, workload.Relay(args, os.Stdin, out)
}

// judge checks a history, stores the verdicts and prints them.
func judge(c run.Config, in check.Input, out io.Writer) (int, error) {
	results := check.All(in)
	sum := run.Summarize(in)
	sum.Time = c.Time
	verdict := check.Overall(results)
	if verdict == check.Pass {
		sum.Passed = 1
	}
	err := errors.Join(run.SaveResults(c.Store, results, sum), report.Write(c.Store, c, sum, in, results))
	if err != nil {
		return exitHarness, err
	}
	fmt.Fprintf(out, "%s: %d operations (%d ok, %d fail, %d info), %d faults, %d leader changes, %d events\n", verdict,
		sum.Ops, sum.Outcomes["ok"], sum.Outcomes["fail"], sum.Outcomes["info"], total(sum.Faults), sum.Leaders, sum.Events)
	for _, r := range results {
		if r.Verdict == check.Pass {
			continue
		}
		fmt.Fprintf(out, "  %s: %s\n", r.Verdict, r.Check)
		for _, p := range r.Problems {
			fmt.Fprintf(out, "    %s\n", p)
		}
		if r.More > 0 {
			fmt.Fprintf(out, "    and %d more\n", r.More)
		}
	}
	if verdict == check.Pass {
		return exitPass, nil
	}
	fmt.Fprintf(out, "  see %s\n  again: jx replay %s\n", filepath.Join(c.Store, report.Index), c.Store)
	if verdict == check.Undecided {
		return exitUndecided, nil
	}
	return exitFail, nil
}

func total(m map[string]int) int {
	n := 0
	for _, v := range m {
		n += v
	}
	return n
}

func cmdList(_ context.Context, args []string, out io.Writer) (int, error) {
	if err := parse(newFlags("list", "", out), args, 0, 0); err != nil {
		return exitPass, err
	}
	fmt.Fprintln(out, "workloads")
	for _, w := range workload.All {
		fmt.Fprintf(out, "  %-10s %s\n", w.Name, w.About)
	}
	fmt.Fprintln(out, "faults")
	for _, k := range nemesis.Kinds() {
		fmt.Fprintf(out, "  %s\n", k)
	}
	return exitPass, nil
}
