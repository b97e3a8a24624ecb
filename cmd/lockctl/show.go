package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
)

func (p *program) statusCommand() *cobra.Command {
	var digest bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show a node and the cluster as it sees it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if digest {
				q.Set("digest", "1")
			}
			b, err := p.get(cmd.Context(), "/v1/status", q)
			if err != nil {
				return err
			}
			return show(p, b, p.printStatus)
		},
	}
	c.Flags().BoolVar(&digest, "digest", false, "also hash the whole table, to compare replicas")
	return c
}

func (p *program) printStatus(s status) {
	w := p.columns()
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("Node", "%s (%s)", plain(s.Name), s.Role)
	if s.Ready {
		row("Ready", "yes")
	} else {
		row("Ready", "no: %s", plain(s.Reason))
	}
	if s.LeadID != "" {
		row("Leader", "%s (%s)", title(s.Leader, s.LeadID), plain(s.LeadAt))
	} else {
		row("Leader", "none")
	}
	row("Term", "%d", s.Term)
	if s.Counts != nil {
		row("Log", "committed %d, applied %d", s.Commit, s.Applied)
		row("Table", "%d locks, %d holds, %d waiting", s.Counts.Locks, s.Counts.Holds, s.Counts.Waits)
	}
	if s.Digest != "" {
		row("Digest", "%s at %d", plain(s.Digest), s.Index)
	}
	row("Version", "%s, up %v", plain(s.Version), time.Since(s.Started).Round(time.Second))
	w.Flush()
	if len(s.Servers) == 0 {
		return
	}
	fmt.Fprintln(p.out)
	w = p.columns()
	fmt.Fprintln(w, "SERVER\tADDRESS\tROLE\tREACHABLE")
	for _, v := range s.Servers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", title(v.Name, v.ID), plain(v.Addr), role(v.Leader, v.Voter), yes(v.Reachable))
	}
	w.Flush()
}

// title is what to call a server: by its name, if that is known.
func title(name, id string) string {
	if name != "" {
		return plain(name)
	}
	return plain(id)
}

func (p *program) membersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List the nodes that are there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := p.get(cmd.Context(), "/v1/members", nil)
			if err != nil {
				return err
			}
			return show(p, b, p.printMembers)
		},
	}
}

func (p *program) printMembers(list []member) {
	w := p.columns()
	fmt.Fprintln(w, "NAME\tROLE\tHOST\tPEERS\tCLIENTS\tVERSION")
	for _, m := range list {
		r := "agent"
		if m.Kind != "agent" {
			r = role(m.Leader, m.Voter)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", plain(m.Name), r, dash(m.Host), dash(m.Peer), dash(m.Client), dash(m.Version))
	}
	w.Flush()
	for _, m := range list {
		if m.Note != "" {
			fmt.Fprintf(p.out, "\n%s at %s %s.\n", plain(m.Name), dash(m.Peer), plain(m.Note))
		}
	}
}

func (p *program) locksCommand() *cobra.Command {
	var lock string
	var stale bool
	c := &cobra.Command{
		Use:   "locks",
		Short: "List what is held and who waits",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if lock != "" {
				q.Set("lock", lock)
			}
			if stale {
				q.Set("stale", "1")
			}
			b, err := p.get(cmd.Context(), "/v1/locks", q)
			if err != nil {
				return err
			}
			return show(p, b, p.printTable)
		},
	}
	c.Flags().StringVar(&lock, "lock", "", "only what concerns the lock `name`")
	c.Flags().BoolVar(&stale, "stale", false, "what this node knows, even without a leader")
	return c
}

func (p *program) printTable(t table) {
	if len(t.Holds) == 0 && len(t.Waiters) == 0 {
		fmt.Fprintln(p.out, "Nothing is held.")
		return
	}
	w := p.columns()
	fmt.Fprintln(w, "LOCK\tOWNER\tFENCE\tMODE\tPROCESS\tHELD\tENDS IN\tWAITING")
	var suspended []hold
	for _, h := range t.Holds {
		mode := h.Mode
		if h.Mode == "slots" {
			mode += " " + strconv.Itoa(h.Slots)
		}
		left := "-"
		if h.Left != nil {
			left = duration(*h.Left)
		}
		if h.Suspended != nil {
			mode += ", suspended"
			if h.Suspended.Ending {
				mode += " (job ending)"
			}
			suspended = append(suspended, h)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\n",
			names(h.Locks), plain(h.Owner), h.Fence, plain(mode), process(h.Host, h.PID), duration(h.Granted), left, h.Waiters)
	}
	w.Flush()
	if len(suspended) > 0 {
		fmt.Fprintln(p.out)
		w = p.columns()
		fmt.Fprintln(w, "SUSPENDED\tFENCE\tBY\tSINCE\tJOB")
		for _, h := range suspended {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", names(h.Locks), h.Fence, plain(h.Suspended.By), duration(h.Suspended.Ago), dash(h.Suspended.Context))
		}
		w.Flush()
	}
	if len(t.Waiters) == 0 {
		return
	}
	fmt.Fprintln(p.out)
	w = p.columns()
	fmt.Fprintln(w, "WAITS FOR\tOWNER\tPLACE\tMODE\tPROCESS\tWAITED")
	for _, v := range t.Waiters {
		what := names(v.Locks)
		if len(v.Locks) > 1 {
			what = plain(v.Choice) + " of " + what
		}
		place := strconv.Itoa(v.Place)
		if v.Away {
			place += ", passed over" // its node is out of touch
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", what, plain(v.Owner), place, plain(v.Mode), process(v.Host, v.PID), duration(v.Waited))
	}
	w.Flush()
}

func (p *program) columns() *tabwriter.Writer { return tabwriter.NewWriter(p.out, 0, 8, 2, ' ', 0) }

// plain makes a name from the network safe for a terminal.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

func names(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = plain(s)
	}
	return strings.Join(out, " ")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return plain(s)
}

func process(host string, pid int) string {
	switch {
	case pid == 0:
		return dash(host)
	case host == "":
		return strconv.Itoa(pid)
	}
	return plain(host) + ":" + strconv.Itoa(pid)
}

func duration(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func role(leader, voter bool) string {
	switch {
	case leader:
		return "leader"
	case voter:
		return "voter"
	}
	return "no vote"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
