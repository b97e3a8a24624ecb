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

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

// version is set by the linker in releases.
var version = "2.0"

var program = getopt.Program{
	Name: "freezefs", Version: version, Usage: usage, UsageEnd: usageEnd,
	Statuses: append([]getopt.Status{{Of: errFirst, Code: freezing.ExitUnsupported}}, freezing.Statuses...),
}

// errFirst is for the first process of a pid namespace, which takes its guard with it.
var errFirst = errors.New("this is the first process of its pid namespace, which ends with it, and so would the guard: --wait stays until the thaw")

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
		return program.Answer(o.Standard, flags(&options{}))
	case o.query:
		return query(o)
	case !o.wait && os.Getpid() == 1:
		return program.Complain(errFirst)
	case o.dryRun:
		return survey(o)
	}
	ctx, stop := freezing.Signals()
	defer stop()
	return freeze(ctx, o)
}

// freeze leaves everything to a guard. Until it is frozen, and said to be, a signal thaws.
func freeze(ctx context.Context, o *options) int {
	if err := getopt.CanPrint(); err != nil {
		return program.Complain(fmt.Errorf("%w; nothing is frozen", err))
	}
	// Who waits to write to what it has frozen cannot say that it has.
	o.order.Protect = append(o.order.Protect, outputs()...)
	guard, err := freezer.Start(ctx, "")
	var report freezer.Report
	if err == nil {
		defer guard.Close()
		report, err = guard.Freeze(ctx, o.order)
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, freezer.ErrNotThawed) {
		return interrupted()
	}
	if err != nil {
		return program.Complain(err)
	}
	state, err := guard.State()
	if err != nil {
		return program.Complain(err)
	}
	state.Detached = o.order.Detach // as soon as we have gone
	said := make(chan error, 1)
	go func() { said <- tell(o, &report, &state) }()
	select {
	case err = <-said:
		if err == nil && o.wait {
			return wait(ctx, guard)
		}
		if err == nil {
			return 0
		}
	case <-ctx.Done(): // somebody has the output who reads nothing of it
	case <-guard.Done():
		if o.wait { // whoever was told, or not: it is over
			return wait(ctx, guard)
		}
		return program.Complain(guard.Err())
	}
	// Nobody has been told that it is frozen.
	if late := guard.Thaw(); late != nil {
		return program.Complain(late)
	}
	if err == nil {
		return interrupted()
	}
	return program.Complain(fmt.Errorf("%w; nothing is frozen", err))
}

// wait returns when everything is thawed. A signal is a way to ask for that.
func wait(ctx context.Context, guard *freezer.Guard) int {
	var err error
	select {
	case <-guard.Done():
		err = guard.Err()
	case <-ctx.Done():
		err = guard.Thaw()
	}
	// Thawed by thawfs it is ErrThawed itself; with more words it was not meant to end yet.
	if err == nil || err == freezer.ErrThawed || errors.Is(err, freezer.ErrDeadline) {
		return 0
	}
	if code := program.Complain(err); errors.Is(err, freezer.ErrNotThawed) {
		return code
	}
	return freezing.ExitThawed
}

func interrupted() int {
	fmt.Fprintln(os.Stderr, "freezefs: a signal came before it was frozen; nothing is")
	return freezing.ExitTempFail
}

// outputs are the files that the program writes to.
func outputs() (paths []string) {
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if info, serr := f.Stat(); err == nil && serr == nil && info.Mode().IsRegular() {
			paths = append(paths, strings.TrimSuffix(name, " (deleted)"))
		}
	}
	return paths
}

// tell says what is frozen. That nobody reads it any more is an error, and not the end.
func tell(o *options, r *freezer.Report, s *freezer.State) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	for _, w := range r.Warnings {
		fmt.Fprintln(os.Stderr, "freezefs: warning:", w)
	}
	if o.json {
		return getopt.Print(getopt.JSON(s))
	}
	var names []string
	for _, f := range r.FileSystems {
		names = append(names, freezer.OneLine(f))
	}
	return getopt.Print(fmt.Sprintf("%s: frozen %s\n", strings.Join(names, ", "), until(s)))
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
			code = max(code, freezing.ExitFrozen)
		}
	}
	if o.json {
		return max(code, program.Print(getopt.JSON(all)))
	}
	var text strings.Builder
	for i := range all {
		fmt.Fprintf(&text, "%s: %s\n", freezer.OneLine(all[i].Mount), describe(&all[i]))
	}
	return max(code, program.Print(text.String()))
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
		return program.Print(getopt.JSON(all))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%-7s %-20s %s\n", "TYPE", "SOURCE", "MOUNT")
	for _, s := range all {
		fmt.Fprintf(&text, "%-7s %-20s %s\n", s.Type, freezer.OneLine(s.Source), freezer.OneLine(s.Mount))
	}
	return program.Print(text.String())
}
