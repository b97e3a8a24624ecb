package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/run"
	"github.com/lockerd/lockerd/jepsen/workload"
)

// job is a workload under a set of faults.
type job struct {
	workload string
	nemesis  []string
	seed     uint64 // 0 takes the next
}

// selection is what continuous integration runs. Together it has most kinds of
// faults, and the workloads that see most.
var selection = []job{
	{workload: "mutex", nemesis: []string{"isolate", "partition", "oneway"}},
	{workload: "mutex", nemesis: []string{"power", "powerall", "stall"}},
	{workload: "mutex", nemesis: []string{"kill", "flap", "reorder"}},
	{workload: "fenced", nemesis: []string{"pause"}},
	{workload: "autounlock", nemesis: []string{"pauselead", "clientcut"}},
	{workload: "faraway", nemesis: []string{"mute"}},
	{workload: "anyof", nemesis: []string{"transfer", "restart", "loss"}},
	{workload: "timeout", nemesis: []string{"clockjump", "clockrate", "killall"}},
}

// sets are the columns of the matrix.
var sets = [][]string{
	nil,
	{"partition", "isolate", "ring"},
	{"oneway", "reset", "clientcut", "flap"},
	{"loss", "slow", "delay", "reorder"},
	{"kill", "killall"},
	{"pause", "pauselead", "pauseall"},
	{"restart", "rolling", "transfer"},
	{"member", "replace"},
	{"power", "powerall"},
	{"stall", "full", "slowdisk"},
	{"clockjump", "clockrate", "slowlead"},
	{"partition", "kill", "power", "pause", "clockjump"},
	{"mute"},
}

func cmdCI(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("ci", "[OPTION]...", out)
	var o options
	o.flags(fs)
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if !fs.Changed("time") {
		o.Time = 7 * time.Second
	}
	o.Rhythm, o.Snapshots = gen.Brisk, true
	if !fs.Changed("race") {
		o.Race = true
	}
	if o.Seed == 0 {
		// Of the commit, so that each is tested with another schedule, and again
		// with the same one.
		h := fnv.New32a()
		fmt.Fprint(h, commit(ctx))
		o.Seed = uint64(h.Sum32())
	}
	fmt.Fprintf(out, "seed %d, commit %s\n", o.Seed, commit(ctx))
	return o.many(ctx, out, selection, true)
}

// briefRun is a run that is too short for faults that come at leisure.
const briefRun = 30 * time.Second

func cmdAll(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("all", "[OPTION]...", out)
	var o options
	o.flags(fs)
	budget := fs.Duration("budget", 0, "begin no further run after so `long`; 0 for no limit")
	skip := fs.Int("skip", 0, "leave the first `number` of runs out, as done before with the same seed")
	part := fs.String("part", "1/1", "do the `I/N`th part of the runs: others do the rest with the same seed")
	only := fs.StringSlice("workload", nil, "only these workloads, with commas between")
	onward := fs.Bool("keep-going", false, "go on after a run that did not pass")
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1 << 32)
	}
	if o.Time < briefRun {
		o.Rhythm = gen.Brisk
	}
	var jobs []job
	for _, w := range workload.All {
		for _, n := range sets {
			able := w.Far || !slices.ContainsFunc(n, nemesis.NeedsFar)
			if able && (len(*only) == 0 || slices.Contains(*only, w.Name)) {
				jobs = append(jobs, job{workload: w.Name, nemesis: n})
			}
		}
	}
	for _, name := range *only {
		if _, ok := workload.Named(name); !ok {
			return exitUsage, usageError{fmt.Errorf("no workload %q", name)}
		}
	}
	var i, of int
	if n, err := fmt.Sscanf(*part, "%d/%d", &i, &of); n != 2 || err != nil || i < 1 || i > of {
		return exitUsage, usageError{fmt.Errorf("--part %s is not of the form 2/3", *part)}
	}
	rand.New(rand.NewPCG(o.Seed, 0)).Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
	if *skip < 0 || *skip > len(jobs) {
		return exitUsage, usageError{fmt.Errorf("--skip %d of %d runs", *skip, len(jobs))}
	}
	var mine []job
	for n, j := range jobs {
		if j.seed = o.Seed + uint64(n); n >= *skip && n%of == i-1 {
			mine = append(mine, j)
		}
	}
	fmt.Fprintf(out, "seed %d, commit %s, %d runs\n", o.Seed, commit(ctx), len(mine))
	if *budget > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *budget)
		defer cancel()
	}
	return o.many(ctx, out, mine, !*onward)
}

func cmdSoak(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("soak", "[OPTION]...", out)
	var o options
	o.flags(fs)
	total := fs.Duration("total", time.Hour, "how `long` in all; --time is the length of each run")
	keep := fs.Bool("keep", false, "keep the histories of runs that passed, and not only their figures")
	onward := fs.Bool("keep-going", false, "go on after a run that did not pass")
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if !fs.Changed("time") {
		o.Time = 2 * time.Minute
	}
	if !fs.Changed("nodes") {
		o.Nodes = 5
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1 << 32)
	}
	fmt.Fprintf(out, "seed %d, commit %s\n", o.Seed, commit(ctx))
	rng := rand.New(rand.NewPCG(o.Seed, 0))
	var jobs []job
	for range int(*total/(o.Time+10*time.Second)) + 1 {
		w := workload.All[rng.IntN(len(workload.All))]
		jobs = append(jobs, job{workload: w.Name, nemesis: nemesis.Usual(w.Far)})
	}
	ctx, cancel := context.WithTimeout(ctx, *total)
	defer cancel()
	o.spare = !*keep
	return o.many(ctx, out, jobs, !*onward)
}

// many does the runs one after the other, each with a seed of its own, and says
// what they were in all. It begins none after ctx has ended.
func (o *options) many(ctx context.Context, out io.Writer, jobs []job, stop bool) (int, error) {
	seed, race := o.Seed, o.Race
	worst := exitPass
	var sum run.Summary
	programs := map[bool]string{true: o.Binary, false: o.Binary} // with and without a clock that can be set
	for i, j := range jobs {
		if ctx.Err() != nil {
			break
		}
		o.Workload, o.Nemesis, o.Seed = j.workload, j.nemesis, cmp.Or(j.seed, seed+uint64(i))
		clock := slices.ContainsFunc(j.nemesis, nemesis.NeedsClock)
		o.Binary, o.Clocks = programs[clock], clock
		// A Go runtime with another clock and the race detector takes minutes to build.
		o.Race = race && !clock
		// A run that has begun goes on when the time is over.
		if err := o.prepare(context.WithoutCancel(ctx)); err != nil {
			return exitHarness, err
		}
		programs[clock] = o.Binary
		if err := o.Validate(); err != nil {
			return exitHarness, err
		}
		code, err := oneTo(o.Config, out)
		if err != nil {
			return exitHarness, err
		}
		if code == exitHarness {
			return code, nil // it has said why
		}
		s, err := run.LoadSummary(o.Store)
		if err != nil {
			return exitHarness, err
		}
		sum.Add(s)
		if code == exitPass && o.spare {
			if err := run.Spare(o.Store); err != nil {
				return exitHarness, err
			}
		}
		if code != exitPass && (worst == exitPass || code == exitFail) {
			worst = code
		}
		if code != exitPass && stop {
			break
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return exitHarness, errInterrupted
	}
	if sum.Runs == 0 {
		fmt.Fprintf(out, "none of %d runs was begun: undecided\n", len(jobs))
		return exitUndecided, nil
	}
	fmt.Fprintf(out, "%d planned; %v; faults %v: %s\n", len(jobs), sum, sum.Faults, map[int]string{exitPass: "all passed", exitUndecided: "undecided", exitFail: "FAILED"}[worst])
	return worst, nil
}
