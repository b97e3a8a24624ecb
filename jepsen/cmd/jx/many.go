package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"

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
	{workload: "mutex", nemesis: []string{"isolate", "partition", "oneway", "flap"}},
	{workload: "mutex", nemesis: []string{"power", "powerall", "stall", "ioerror"}},
	{workload: "freeze", nemesis: []string{"kill", "transfer"}},
	{workload: "fenced", nemesis: []string{"pause"}},
	{workload: "autounlock", nemesis: []string{"pauselead", "clientcut"}},
	{workload: "faraway", nemesis: []string{"mute"}},
	{workload: "anyof", nemesis: []string{"restart", "loss", "reorder"}},
	{workload: "timeout", nemesis: []string{"clockjump", "clockrate", "strobe", "killall"}},
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
	{"stall", "full", "slowdisk", "ioerror"},
	{"clockjump", "clockrate", "slowlead", "strobe"},
	{"partition", "kill", "power", "pause", "clockjump"},
	{"mute"},
}

// maxJobs is how many runs there may be at a time.
const maxJobs = 16

func (o *options) jobsFlag(fs *pflag.FlagSet, usual int) {
	fs.IntVar(&o.jobs, "jobs", usual, "do so `many` runs at a time: they wait most of their time")
}

func cmdCI(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("ci", "[OPTION]...", out)
	o := usual()
	o.Time, o.Rhythm, o.Snapshots, o.Race = 7*time.Second, gen.Brisk, true, true
	o.flags(fs)
	fs.Lookup("seed").Usage = "of the schedule; 0 takes that of the commit"
	o.jobsFlag(fs, 2)
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if o.Seed == 0 {
		// Of the commit, so that each is tested with another schedule, and again
		// with the same one.
		h := fnv.New32a()
		fmt.Fprint(h, commit(ctx))
		o.Seed = uint64(h.Sum32())
	}
	if err := o.validate(selection); err != nil {
		return exitUsage, err
	}
	fmt.Fprintf(out, "seed %d, commit %s\n", o.Seed, commit(ctx))
	return o.many(ctx, out, selection, true)
}

// briefRun is a run that is too short for faults that come at leisure.
const briefRun = 30 * time.Second

func cmdAll(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("all", "[OPTION]...", out)
	o := usual()
	o.flags(fs)
	budget := fs.Duration("budget", 0, "begin no further run after so `long`; 0 for no limit")
	skip := fs.Int("skip", 0, "leave the first `number` of runs out, as done before with the same seed")
	part := fs.String("part", "1/1", "do the `I/N`th part of the runs: others do the rest with the same seed")
	only := fs.StringSlice("workload", nil, "only these workloads, with commas between")
	with := fs.StringSlice("nemesis", nil, "only sets with one of these faults, with commas between")
	onward := fs.Bool("keep-going", false, "go on after a run that did not pass")
	o.jobsFlag(fs, 1)
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	for _, k := range *with {
		if !nemesis.Known(k) {
			return exitUsage, usageError{fmt.Errorf("no fault %q", k)}
		}
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
			able = able && (len(*with) == 0 || slices.ContainsFunc(*with, func(k string) bool { return slices.Contains(n, k) }))
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
	if len(jobs) == 0 {
		return exitUsage, usageError{fmt.Errorf("no set of faults has any of %v: give them to jx run", *with)}
	}
	if *skip < 0 || *skip > len(jobs) {
		return exitUsage, usageError{fmt.Errorf("--skip %d of %d runs", *skip, len(jobs))}
	}
	var mine []job
	for n, j := range jobs {
		if j.seed = o.Seed + uint64(n); n >= *skip && n%of == i-1 {
			mine = append(mine, j)
		}
	}
	if err := o.validate(mine); err != nil {
		return exitUsage, err
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
	o := usual()
	o.Time, o.Nodes = 2*time.Minute, 5
	o.flags(fs)
	total := fs.Duration("total", time.Hour, "how `long` in all; --time is the length of each run")
	keep := fs.Bool("keep", false, "keep the histories of runs that passed, and not only their figures")
	onward := fs.Bool("keep-going", false, "go on after a run that did not pass")
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1 << 32)
	}
	if err := o.validate([]job{{workload: "mutex"}}); err != nil {
		return exitUsage, err
	}
	rng := rand.New(rand.NewPCG(o.Seed, 0))
	var jobs []job
	for range int(*total/(o.Time+10*time.Second)) + 1 {
		w := workload.All[rng.IntN(len(workload.All))]
		jobs = append(jobs, job{workload: w.Name, nemesis: nemesis.Usual(w.Far)})
	}
	if err := o.validate(jobs); err != nil {
		return exitUsage, err
	}
	fmt.Fprintf(out, "seed %d, commit %s\n", o.Seed, commit(ctx))
	ctx, cancel := context.WithTimeout(ctx, *total)
	defer cancel()
	o.spare = !*keep
	return o.many(ctx, out, jobs, !*onward)
}

// validate says what is wrong with any of the runs, before there is one.
func (o *options) validate(jobs []job) error {
	if o.jobs < 0 || o.jobs > maxJobs {
		return usageError{fmt.Errorf("--jobs %d: it can be 1 to %d", o.jobs, maxJobs)}
	}
	c := o.Config
	for _, j := range jobs {
		c.Workload, c.Nemesis, c.Clocks = j.workload, j.nemesis, true
		if err := c.Validate(); err != nil {
			return usageError{err}
		}
	}
	return nil
}

// many does the runs, o.jobs at a time, each with a seed of its own, and says what they
// were in all. It begins none after ctx has ended.
func (o *options) many(ctx context.Context, out io.Writer, jobs []job, stop bool) (int, error) {
	m := &manyRuns{out: out, spare: o.spare}
	programs, err := o.programs(ctx, jobs)
	if err != nil {
		return exitHarness, err
	}
	free := make(chan struct{}, max(1, o.jobs))
	var all sync.WaitGroup
	for i, j := range jobs {
		free <- struct{}{}
		if ctx.Err() != nil || m.over(stop) {
			break
		}
		next := *o
		clock := j.needsClock()
		next.Workload, next.Nemesis, next.Seed = j.workload, j.nemesis, cmp.Or(j.seed, o.Seed+uint64(i))
		next.Binary, next.Clocks, next.Race = programs[clock], clock, o.Race && !clock
		// A run that has begun goes on when the time is over.
		if err := next.prepare(context.WithoutCancel(ctx)); err != nil {
			m.ended(exitHarness, err)
			break
		}
		all.Go(func() {
			m.run(next.Config, o.jobs > 1)
			<-free
		})
	}
	all.Wait()
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return exitHarness, errInterrupted
	case m.worst == exitHarness:
		return exitHarness, m.err
	case m.sum.Runs == 0:
		fmt.Fprintf(out, "none of %d runs was begun: undecided\n", len(jobs))
		return exitUndecided, nil
	}
	says := map[int]string{exitPass: "all passed", exitUndecided: "undecided", exitFail: "FAILED"}[m.worst]
	fmt.Fprintf(out, "%d planned; %v; faults %v: %s\n", len(jobs), m.sum, m.sum.Faults, says)
	return m.worst, nil
}

func (j job) needsClock() bool { return slices.ContainsFunc(j.nemesis, nemesis.NeedsClock) }

// programs builds the servers for all runs, with a clock that can be set and without, so
// that no build disturbs a run.
func (o *options) programs(ctx context.Context, jobs []job) (map[bool]string, error) {
	programs := map[bool]string{}
	for _, j := range jobs {
		clock := j.needsClock()
		if programs[clock] != "" {
			continue
		}
		next := *o
		next.Nemesis = j.nemesis
		// A Go runtime with another clock and the race detector takes minutes to build.
		next.Race = o.Race && !clock
		if next.Binary == "" {
			var err error
			if next.Binary, err = next.build(ctx); err != nil {
				return nil, err
			}
		}
		programs[clock] = next.Binary
	}
	return programs, nil
}

// manyRuns is what has come of runs so far.
type manyRuns struct {
	spare bool // keep of runs that passed no more than the figures

	mu    sync.Mutex
	out   io.Writer
	sum   run.Summary
	worst int
	err   error // of the harness
}

// run does one of them. What it prints is kept together if others print as well.
func (m *manyRuns) run(c run.Config, together bool) {
	out := m.out
	var said bytes.Buffer
	if together {
		out = &said
	}
	code, err := oneTo(c, out)
	m.mu.Lock()
	_, _ = said.WriteTo(m.out)
	m.mu.Unlock()
	if err == nil && code != exitHarness {
		err = m.count(c, code)
	}
	if err != nil {
		code = exitHarness
	}
	m.ended(code, err)
}

// count adds the figures of a run.
func (m *manyRuns) count(c run.Config, code int) error {
	s, err := run.LoadSummary(c.Store)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.sum.Add(s)
	m.mu.Unlock()
	if code == exitPass && m.spare {
		return run.Spare(c.Store)
	}
	return nil
}

// ended notes how a run ended. A fault of the harness is worse than one of the product,
// and that is worse than no verdict.
func (m *manyRuns) ended(code int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rank := []int{exitPass, exitUndecided, exitFail, exitHarness}
	if slices.Index(rank, code) > slices.Index(rank, m.worst) {
		m.worst = code
	}
	if m.err == nil {
		m.err = err
	}
}

// over says whether no more runs are to be begun.
func (m *manyRuns) over(stop bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.worst == exitHarness || stop && m.worst != exitPass
}
