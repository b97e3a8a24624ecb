package run

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/history"
)

// leaderNote is the F of notes on who leads.
const leaderNote = "leader"

// watchLeader notes each change of who leads, as far as the nodes can be asked.
func (s *session) watchLeader(ctx context.Context) {
	var was string
	for ctx.Err() == nil {
		is := ""
		if n, term := s.cluster.Leader(ctx); n != nil {
			is = fmt.Sprintf("%s %d", n.Name, term)
		}
		if is != was && ctx.Err() == nil {
			s.rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: leaderNote, Value: is})
			was = is
		}
		_ = sleep(ctx, lookEvery)
	}
}

// janitorProcess is the process number of the janitor.
const janitorProcess = 1_000_000

// janitor ends what abandoned users hold.
func (s *session) janitor(ctx context.Context) {
	for sleep(ctx, 3*lookEvery) == nil {
		if s.env.AnyAbandoned() {
			_, _ = s.clean(ctx) // what it could not do now, it does later
		}
	}
}

// clean ends what abandoned users hold, and lists who holds or waits still.
func (s *session) clean(ctx context.Context) (kept []string, err error) {
	err = errors.New("no node runs")
	for _, n := range s.cluster.Nodes {
		if !n.Running() {
			continue
		}
		var t db.Table
		if t, err = n.Table(ctx); err == nil {
			kept, err = s.cleanTable(ctx, n, t)
			return kept, err
		}
	}
	return nil, err
}

func (s *session) cleanTable(ctx context.Context, n *db.Node, t db.Table) (kept []string, err error) {
	for _, h := range t.Holds {
		kept = append(kept, fmt.Sprintf("%s holds %v under fence %d", h.Owner, h.Locks, h.Fence))
		if !s.env.Abandoned(h.Owner) {
			continue
		}
		note := history.Op{
			Process: janitorProcess, Type: history.Invoke, F: history.Break,
			Locks: h.Locks, Owner: h.Owner, Fence: h.Fence, Value: "janitor", Node: n.Name,
		}
		s.rec.Add(note)
		note.Type = history.OK
		if e := n.Break(ctx, h, "janitor"); errors.Is(e, db.ErrRefused) {
			note.Type, note.Error = history.Fail, e.Error()
		} else if e != nil {
			note.Type, note.Error = history.Info, e.Error()
			err = e
		}
		s.rec.Add(note)
	}
	for _, w := range t.Waiters {
		kept = append(kept, fmt.Sprintf("%s waits for %v", w.Owner, w.Locks))
	}
	return kept, err
}

// breaker ends whoever holds a lock. Only the node named is asked, and only once: what
// it answers is then of this one attempt.
func (s *session) breaker(ctx context.Context, node int, lock, by string) ([]string, error) {
	return s.cluster.Nodes[node].BreakAny(ctx, lock, by)
}

// Summary is what runs were made of, in figures.
type Summary struct {
	Runs     int            `json:"runs"`
	Passed   int            `json:"passed"`
	Time     time.Duration  `json:"time"` // with faults
	Ops      int            `json:"ops"`  // that clients began
	Outcomes map[string]int `json:"outcomes"`
	Faults   map[string]int `json:"faults"`
	Leaders  int            `json:"leader_changes"`
	Installs int            `json:"snapshot_installs"`
	Events   int            `json:"events"`
}

// Summarize counts.
func Summarize(in check.Input) Summary {
	m := Summary{Runs: 1, Outcomes: map[string]int{}, Faults: map[string]int{}, Events: len(in.Events), Installs: in.End.Installs}
	for _, p := range history.Pairs(in.Ops) {
		m.Ops++
		m.Outcomes[string(p.Type())]++
	}
	led := ""
	for _, op := range in.Ops {
		switch {
		case op.Process != history.Nemesis:
		case op.F == leaderNote:
			if op.Value != "" && led != "" && op.Value != led {
				m.Leaders++
			}
			if op.Value != "" {
				led = op.Value
			}
		case op.Type == history.Invoke || op.F == history.Reuse:
			m.Faults[op.F]++
		}
	}
	return m
}

// Add adds the figures of other runs.
func (m *Summary) Add(o Summary) {
	if m.Outcomes == nil {
		m.Outcomes, m.Faults = map[string]int{}, map[string]int{}
	}
	m.Runs += o.Runs
	m.Passed += o.Passed
	m.Time += o.Time
	m.Ops += o.Ops
	m.Leaders += o.Leaders
	m.Installs += o.Installs
	m.Events += o.Events
	for k, n := range o.Outcomes {
		m.Outcomes[k] += n
	}
	for k, n := range o.Faults {
		m.Faults[k] += n
	}
}

// String is for people.
func (m Summary) String() string {
	faults := 0
	for _, n := range m.Faults {
		faults += n
	}
	return fmt.Sprintf("%d runs of %v in all, %d passed; %d operations (%d ok, %d fail, %d info), %d faults, "+
		"%d leader changes, %d power losses, %d membership changes, %d snapshots sent",
		m.Runs, m.Time, m.Passed, m.Ops, m.Outcomes["ok"], m.Outcomes["fail"], m.Outcomes["info"], faults,
		m.Leaders, m.Faults["power"]+m.Faults["powerall"], m.Faults["member"]+m.Faults["replace"], m.Installs)
}
