// Command freezefs freezes file systems until they are thawed, or the time is up.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit statuses of our own, after sysexits(3) where it has one.
const (
	exitFrozen      = 1 // an answer
	exitUnknown     = 65
	exitNotMounted  = 66
	exitUnsupported = 69
	exitNoMemory    = 71
	exitTempFail    = 75
	exitNoRight     = 77
)

var program = getopt.Program{
	Name: "freezefs", Version: version, Usage: usage, UsageEnd: usageEnd,
	Statuses: []getopt.Status{
		{Of: freezer.ErrPermission, Code: exitNoRight},
		{Of: freezer.ErrProtected, Code: exitNoRight},
		{Of: freezer.ErrNotMounted, Code: exitNotMounted},
		{Of: freezer.ErrNotSupported, Code: exitUnsupported},
		{Of: freezer.ErrUnknown, Code: exitUnknown},
		{Of: freezer.ErrNoMemory, Code: exitNoMemory},
		{Of: freezer.ErrAlreadyFrozen, Code: exitTempFail},
		{Of: freezer.ErrHeld, Code: exitTempFail},
		{Of: freezer.ErrDeadline, Code: exitTempFail},
		{Of: freezer.ErrGuardLost, Code: exitTempFail},
		{Of: freezer.ErrOption, Code: getopt.ExitUsage},
		{Of: freezer.ErrOrder, Code: getopt.ExitUsage},
	},
}

func main() {
	freezer.AtGuard()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	o, err := parse(args)
	switch {
	case err != nil:
		return program.Misused(err)
	case o.Asked():
		program.Answer(o.Standard, flags(&options{}))
		return 0
	case o.query:
		return query(o)
	case o.dryRun:
		return survey(o)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return freeze(ctx, o)
}

// freeze leaves everything to a guard. Until it is frozen, a signal thaws.
func freeze(ctx context.Context, o *options) int {
	guard, err := freezer.Start(ctx, "")
	var report freezer.Report
	if err == nil {
		defer guard.Close()
		report, err = guard.Freeze(ctx, o.order)
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, freezer.ErrNotThawed) {
		fmt.Fprintln(os.Stderr, "freezefs: a signal came before it was frozen; nothing is")
		return exitTempFail
	}
	if err != nil {
		return program.Complain(err)
	}
	// Only now, for stdout may be a file on what is frozen.
	state, err := guard.State()
	if err != nil {
		return program.Complain(err)
	}
	for _, w := range report.Warnings {
		fmt.Fprintln(os.Stderr, "freezefs: warning:", w)
	}
	if o.json {
		return program.PrintJSON(state)
	}
	fmt.Printf("%s: frozen %s\n", strings.Join(report.FileSystems, ", "), until(&state))
	return 0
}

// until says how long a freeze lasts.
func until(s *freezer.State) string {
	if s.Left < 0 {
		return "until it is thawed"
	}
	return "until " + time.Now().Add(s.Left).Format(time.DateTime)
}

// query says what is frozen. The worst answer counts: not to know is worse than frozen.
func query(o *options) int {
	code := 0
	all := []freezer.FSState{}
	for _, t := range o.order.Targets {
		s, err := freezer.QueryFS(t.Path)
		if err != nil {
			code = max(code, program.Complain(err))
			continue
		}
		all = append(all, s)
		if s.Frozen {
			code = max(code, exitFrozen)
		}
	}
	if o.json {
		return max(code, program.PrintJSON(all))
	}
	for i := range all {
		fmt.Printf("%s: %s\n", all[i].Mount, describe(&all[i]))
	}
	return code
}

func describe(s *freezer.FSState) string {
	switch {
	case !s.Frozen && s.By != nil:
		return fmt.Sprintf("not frozen: somebody has thawed it, though guard %d had frozen it %s", s.By.Guard, until(s.By))
	case !s.Frozen:
		return "not frozen"
	case s.By == nil:
		return "frozen, not by freezefs"
	case s.Lost:
		return fmt.Sprintf("frozen by guard %d, which was killed; thawfs thaws it", s.By.Guard)
	}
	if s.By.Overdue > 0 {
		return fmt.Sprintf("frozen, and should have been thawed %v ago by guard %d", s.By.Overdue.Round(time.Second), s.By.Guard)
	}
	return fmt.Sprintf("frozen %s by guard %d, since %s", until(s.By), s.By.Guard, s.By.Since.Local().Format(time.DateTime))
}

// survey prints what freeze would freeze.
func survey(o *options) int {
	all, err := freezer.SurveyFS(o.order)
	if err != nil {
		return program.Complain(err)
	}
	if o.json {
		return program.PrintJSON(all)
	}
	fmt.Printf("%-7s %-20s %s\n", "TYPE", "SOURCE", "MOUNT")
	for _, s := range all {
		fmt.Printf("%-7s %-20s %s\n", s.Type, s.Source, s.Mount)
	}
	return 0
}
