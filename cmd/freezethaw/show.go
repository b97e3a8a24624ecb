package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
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
		return program.Print(getopt.JSON(found))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%7s %7s %s %s\n", "PID", "PARENT", "STATE", "NAME")
	for _, p := range found {
		fmt.Fprintf(&text, "%7d %7d %-5s %s\n", p.PID, p.Parent, p.State, freezer.OneLine(p.Name))
	}
	return program.Print(text.String())
}

func list(asJSON bool) int {
	if os.Geteuid() != 0 { // the directory could not be read, and would look empty
		return program.Complain(freezing.ErrLook)
	}
	states, err := freezer.List("")
	if err != nil {
		return complain(err)
	}
	if asJSON {
		return program.Print(getopt.JSON(states))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%-16s %7s %9s %8s  %s\n", "ID", "GUARD", "REQUESTER", "LEFT", "FROZEN")
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
		what := s.Report.String()
		if n := s.Report.Running; n > 0 {
			what += fmt.Sprintf(", %d running", n)
		}
		fmt.Fprintf(&text, "%-16s %7d %9s %8s  %s\n", s.ID, s.Guard, requester, left, what)
	}
	return program.Print(text.String())
}

func recovered(asJSON bool) int {
	if os.Geteuid() != 0 {
		return program.Complain(freezing.ErrThaw)
	}
	done, err := freezer.Recover("")
	var text string
	switch {
	case asJSON && done == nil:
		text = "[]\n"
	case asJSON:
		text = getopt.JSON(done)
	default:
		for _, r := range done {
			since := ""
			if !r.Since.IsZero() {
				since = ", frozen since " + r.Since.Local().Format(time.DateTime)
			}
			text += fmt.Sprintf("thawed %v of guard %d%s\n", &r, r.Guard, since)
		}
	}
	code := program.Tell(text)
	if err != nil {
		return complain(err)
	}
	return code
}
