package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/lockerd/lockerd/freezer"
)

// tell says on stderr what was frozen.
func tell(r *freezer.Report) {
	fmt.Fprintf(os.Stderr, "freezethaw: %v frozen in %v\n", r, r.Took.Round(100*time.Microsecond))
	for _, p := range r.Unstoppable {
		fmt.Fprintf(os.Stderr, "freezethaw: process %d (%s) %s\n", p.PID, p.Name, p.Why)
	}
	if more := r.Running - len(r.Unstoppable); more > 0 {
		fmt.Fprintf(os.Stderr, "freezethaw: and %d more did not stop\n", more)
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(os.Stderr, "freezethaw: warning:", w)
	}
}

func survey(o *options) int {
	found, err := freezer.Survey(o.order)
	if err != nil {
		return complain(err)
	}
	if o.json {
		return program.PrintJSON(found)
	}
	fmt.Printf("%7s %7s %s %s\n", "PID", "PARENT", "STATE", "NAME")
	for _, p := range found {
		fmt.Printf("%7d %7d %-5s %s\n", p.PID, p.Parent, p.State, printable(p.Name))
	}
	return 0
}

// printable keeps what a process calls itself from doing things to the terminal.
func printable(name string) string {
	quoted := strconv.QuoteToGraphic(name)
	if quoted == `"`+name+`"` {
		return name
	}
	return quoted
}

// What only root may do beside freezing.
var (
	errLook = errors.New("only root may see what is frozen")
	errThaw = errors.New("only root may thaw")
)

func list(asJSON bool) int {
	if os.Geteuid() != 0 { // the directory could not be read, and would look empty
		return program.Complain(errLook)
	}
	states, err := freezer.List("")
	if err != nil {
		return complain(err)
	}
	if asJSON {
		return program.PrintJSON(states)
	}
	fmt.Printf("%-16s %7s %9s %8s  %s\n", "ID", "GUARD", "REQUESTER", "LEFT", "FROZEN")
	for _, s := range states {
		left, requester := "-", strconv.Itoa(s.Requester)
		if s.Left >= 0 {
			left = s.Left.Round(100 * time.Millisecond).String()
		}
		if s.Overdue > 0 {
			left = "overdue"
		}
		if s.Detached {
			requester = "gone"
		}
		fmt.Printf("%-16s %7d %9s %8s  %v\n", s.ID, s.Guard, requester, left, &s.Report)
	}
	return 0
}

func recovered(asJSON bool) int {
	if os.Geteuid() != 0 {
		return program.Complain(errThaw)
	}
	done, err := freezer.Recover("")
	switch {
	case asJSON && done == nil:
		done = []freezer.Recovered{}
		fallthrough
	case asJSON:
		if code := program.PrintJSON(done); code != 0 {
			return code
		}
	default:
		for _, r := range done {
			since := ""
			if !r.Since.IsZero() {
				since = ", frozen since " + r.Since.Local().Format(time.DateTime)
			}
			fmt.Printf("thawed %v of guard %d%s\n", &r, r.Guard, since)
		}
	}
	if err != nil {
		return complain(err)
	}
	return 0
}
