package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/run"
)

// cmdTable prints stored runs as a matrix in Markdown: workloads by faults, with the
// seed of each run, in bold if it did not pass.
func cmdTable(_ context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("table", "[OPTION]... RUN...", out)
	brief := fs.Bool("sum", false, "print what the runs were in all, and no matrix")
	if err := parse(fs, args, 1, maxStored); err != nil {
		return exitPass, err
	}
	cells := map[string]map[string][]string{} // by faults and workload
	workloads, commits := map[string]bool{}, map[string]bool{}
	var sum run.Summary
	var left []string // out, and why
	for _, dir := range fs.Args() {
		c, err := run.LoadConfig(dir)
		if errors.Is(err, run.ErrNoRun) && fs.NArg() > 1 {
			left = append(left, err.Error()) // of store/*, some are none
			continue
		}
		if err != nil {
			return exitHarness, err
		}
		results, err := run.LoadResults(dir)
		if errors.Is(err, os.ErrNotExist) {
			left = append(left, dir+" has no verdict: it was broken off, or is going on")
			continue
		}
		if err != nil {
			return exitHarness, err
		}
		s, err := run.LoadSummary(dir)
		if err != nil {
			return exitHarness, err
		}
		sum.Add(s)
		cell := fmt.Sprint(c.Seed)
		if check.Overall(results) != check.Pass {
			cell = "**" + cell + "**"
		}
		col := strings.Join(c.Nemesis, " ")
		if cells[col] == nil {
			cells[col] = map[string][]string{}
		}
		cells[col][c.Workload] = append(cells[col][c.Workload], cell)
		workloads[c.Workload], commits[c.Commit] = true, true
	}
	for _, why := range left {
		fmt.Fprintf(out, "left out: %s\n", why)
	}
	if sum.Runs == 0 {
		return exitHarness, errNoRuns
	}
	if len(left) > 0 {
		fmt.Fprintln(out)
	}
	if *brief {
		fmt.Fprintf(out, "%v; commits %s\n", sum, strings.Join(slices.Sorted(maps.Keys(commits)), ", "))
		return exitPass, nil
	}
	rows := slices.Sorted(maps.Keys(workloads))
	fmt.Fprintf(out, "| faults | %s |\n|---|%s\n", strings.Join(rows, " | "), strings.Repeat("---|", len(rows)))
	for _, col := range slices.Sorted(maps.Keys(cells)) {
		fmt.Fprintf(out, "| %s |", cmp.Or(col, "none"))
		for _, w := range rows {
			fmt.Fprintf(out, " %s |", strings.Join(cells[col][w], " "))
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "\n%v; commits %s.\n", sum, strings.Join(slices.Sorted(maps.Keys(commits)), ", "))
	return exitPass, nil
}
