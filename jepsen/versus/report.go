package versus

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
)

const notInstalled = "not installed"

// CounterReport is what came of Counter.
type CounterReport struct {
	Counter
	Machine string          `json:"machine"`
	Columns []CounterColumn `json:"systems"`
}

// CounterColumn is what came of it with one way to lock. Missing says why there is
// nothing else.
type CounterColumn struct {
	Title   string `json:"title"`
	Missing string `json:"missing,omitempty"`
	About   string `json:"used,omitempty"`
	Control Count  `json:"without_pauses"`
	Paused  *Count `json:"with_pauses,omitempty"`
}

// Verdict is what the figures say of lockersh.
type Verdict int

const (
	Pass      Verdict = iota
	Fail              // an update was lost, or two commands ran at a time
	Undecided         // nothing was seen, or could have been
)

// Verdict judges lockersh alone; what is beside it is shown only.
func (r CounterReport) Verdict() (Verdict, string) {
	lost := func(c CounterColumn) (n int) {
		n = c.Control.Lost
		if c.Paused != nil {
			n += c.Paused.Lost
		}
		return n
	}
	product, control, ok := r.find()
	switch {
	case !ok:
		return Undecided, "lockersh was not tested"
	case lost(product) > 0:
		return Fail, fmt.Sprintf("lockersh lost %d updates", lost(product))
	case lost(product) < 0:
		return Undecided, "there is more in lockersh's file than was written"
	case lost(control) <= 0:
		return Undecided, "nothing was lost without a lock, either: more --processes or --times are needed"
	}
	for _, c := range []*Count{&product.Control, product.Paused} {
		if c != nil && c.Increments < r.Processes*r.Times {
			return Undecided, fmt.Sprintf("lockersh did %d of %d increments: %s", c.Increments, r.Processes*r.Times, c.Why)
		}
	}
	if r.Pauses > 0 && (product.Paused == nil || product.Paused.Pauses < r.Pauses) {
		return Undecided, "not all pauses were made"
	}
	return Pass, "lockersh lost nothing"
}

func (r CounterReport) find() (product, control CounterColumn, ok bool) {
	for _, c := range r.Columns {
		switch c.Title {
		case ourTitle:
			product, ok = c, true
		case "no lock":
			control = c
		}
	}
	return product, control, ok
}

// Print writes the report as an aligned table.
func (r CounterReport) Print(w io.Writer) error {
	fmt.Fprintf(w, "%d processes add 1 to a number in a file %d times each, every time under the lock\n\n", r.Processes, r.Times)
	rows := [][]string{{""}}
	for _, c := range r.Columns {
		rows[0] = append(rows[0], c.Title)
	}
	count := func(of func(CounterColumn) *Count) {
		row := func(name string, value func(*Count) string) {
			cells := []string{"  " + name}
			for _, c := range r.Columns {
				cells = append(cells, says(c.Missing, value(of(c))))
			}
			rows = append(rows, cells)
		}
		row("increments", func(c *Count) string { return fmt.Sprint(c.Increments) })
		row("number in the file", func(c *Count) string { return fmt.Sprint(c.Number) })
		row("lost updates", func(c *Count) string { return fmt.Sprint(c.Lost) })
		row("commands failed", func(c *Count) string { return fmt.Sprint(c.Failed) })
		row("seconds", func(c *Count) string { return fmt.Sprintf("%.1f", c.Seconds) })
	}
	rows = append(rows, []string{"holders stopped: none"})
	count(func(c CounterColumn) *Count { return &c.Control })
	if r.Pauses > 0 {
		rows = append(rows, []string{fmt.Sprintf("holders stopped for %v: %d", r.Pause, r.Pauses)})
		count(func(c CounterColumn) *Count {
			if c.Paused == nil {
				return &Count{}
			}
			return c.Paused
		})
	}
	if err := aligned(w, rows, 1); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nUsed, one after the other:\n")
	for _, c := range r.Columns {
		fmt.Fprintf(w, "  %s: %s\n", c.Title, says(c.Missing, c.About))
	}
	fmt.Fprintf(w, "  %s\n", r.Machine)
	_, why := r.Verdict()
	_, err := fmt.Fprintf(w, `
Stopped is a holder between its read and its write: its command together with its
lock client, as the lid of a laptop, the move of a virtual machine, a frozen cgroup or
SIGSTOP to a job would. Of the command alone no lock client takes notice.
What protects the file of leases that have run out is a fence (etcd: ETCD_LOCK_REV,
lockersh: LOCKER_FENCE) that whoever writes it compares. A file compares nothing.

%s
`, why)
	return err
}

func says(missing, about string) string { return cmp.Or(missing, about) }

// aligned writes rows, the first columns aligned to the left and others to the right.
func aligned(w io.Writer, rows [][]string, left int) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if len(row) > left || i == 0 {
				widths[i] = max(widths[i], len(cell))
			}
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			width := widths[i]
			if i < left {
				width = -width
			}
			if i > 0 {
				b.WriteString("  ")
			}
			fmt.Fprintf(&b, "%*s", width, cell)
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// DeathReport is what came of Death.
type DeathReport struct {
	Death
	Machine string        `json:"machine"`
	Systems []DeathSystem `json:"systems"`
}

// DeathSystem is what came of it with one way to lock: a row for each of victims.
type DeathSystem struct {
	Title   string   `json:"title"`
	Missing string   `json:"missing,omitempty"`
	About   string   `json:"used,omitempty"`
	Rows    []Spread `json:"killed,omitempty"` // command and lock client, lock client, command
}

// Verdict judges lockersh alone.
func (r DeathReport) Verdict() (Verdict, string) {
	for _, s := range r.Systems {
		if s.Title != ourTitle {
			continue
		}
		for i, row := range s.Rows {
			if row.Beside > 0 {
				return Fail, fmt.Sprintf("%s killed: with lockersh %d commands began while the one before was running", victims[i].name, row.Beside)
			}
		}
		if len(s.Rows) == len(victims) {
			return Pass, "with lockersh no command began while the one before was running"
		}
	}
	return Undecided, "lockersh was not tested"
}

// Print writes the report as an aligned table.
func (r DeathReport) Print(w io.Writer) error {
	fmt.Fprintf(w, "A holder is killed with -9: until the command of the next one begins, %d times each\n\n", r.Runs)
	rows := [][]string{{"killed", "locked by", "p50 ms", "p99 ms", "max ms", "beside the command before"}}
	for i, v := range victims {
		for _, s := range r.Systems {
			row := []string{v.name, s.Title, s.Missing}
			if i < len(s.Rows) {
				x := s.Rows[i]
				row = []string{v.name, s.Title, fmt.Sprintf("%.1f", x.P50), fmt.Sprintf("%.1f", x.P99), fmt.Sprintf("%.1f", x.Max), fmt.Sprintf("%d of %d", x.Beside, x.Runs)}
			}
			rows = append(rows, row)
		}
	}
	if err := aligned(w, rows, 2); err != nil {
		return err
	}
	if ratios := r.ratios(); len(ratios) > 0 {
		fmt.Fprintf(w, "\nRatios of the medians of this run:\n%s\n", strings.Join(ratios, "\n"))
	}
	fmt.Fprintf(w, "\nUsed, one after the other:\n")
	for _, s := range r.Systems {
		fmt.Fprintf(w, "  %s: %s\n", s.Title, says(s.Missing, s.About))
	}
	fmt.Fprintf(w, "  %s\n", r.Machine)
	_, why := r.Verdict()
	_, err := fmt.Fprintf(w, `
The holder asks one server, the next one another; all are on this host, so that the
servers of lockerd see the holder's process. Of a host that is gone they see nothing: there
a lock of lockersh stays until lockctl break, unless it has a --lease.
The time has in it that of starting the command, for all alike.

%s
`, why)
	return err
}

func (r DeathReport) ratios() []string {
	var product DeathSystem
	for _, s := range r.Systems {
		if s.Title == ourTitle {
			product = s
		}
	}
	var lines []string
	for i, v := range victims {
		for _, s := range r.Systems {
			if s.Title == product.Title || i >= len(s.Rows) || i >= len(product.Rows) || product.Rows[i].P50 <= 0 {
				continue
			}
			lines = append(lines, fmt.Sprintf("  %s killed: %s takes %.1f times as long as lockersh", v.name, s.Title, s.Rows[i].P50/product.Rows[i].P50))
		}
	}
	return lines
}

// Time is an upper bound of how long a test may take in all.
func (t Counter) Time() time.Duration {
	systems, runs := 4, time.Duration(t.Processes*t.Times)
	return time.Duration(systems) * (startTime + 2*clientTime + runs*time.Second + time.Duration(t.Pauses)*t.Pause)
}

// Time is an upper bound of how long a test may take in all.
func (t Death) Time() time.Duration {
	all := startTime + time.Duration(t.Runs*len(victims))*clientTime
	for _, ttl := range t.TTLs {
		all += startTime + time.Duration(t.Runs*len(victims))*(clientTime+2*ttl)
	}
	return all
}
