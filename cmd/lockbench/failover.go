package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/systest/farm"
)

// Goals of a failover.
const (
	goalMedian = 150 * time.Millisecond
	goalWorst  = 2 * time.Second
	goalCut    = 4 * time.Second // the leader's host is lost without a word
)

const (
	runTime   = 30 * time.Second // for one run, restart and all
	loadPairs = 5                // pairs that each client has made before the leader dies
)

// failover measures how long busy clients stand still when the leader dies.
type failover struct {
	runs, clients, servers int
	every                  time.Duration
	cut                    bool
}

func (p *program) failoverCommand() *cobra.Command {
	var m failover
	c := &cobra.Command{
		Use:   "failover",
		Short: "Kill the leader under load, and time its clients",
		Long: fmt.Sprintf(`The leader is killed with SIGKILL while clients lock and unlock, each its own
lock. What is timed is, for every client, how long after the kill it reads the
grant of a LOCK that it has sent after the kill. The node is started again, and
the next run begins once all nodes have the whole table, and --every has passed: a
node calls an early election once in 5 s at most, and for a leader that dies
sooner after another the usual time-out is what counts.

There are as many clients again as --clients says: those called attached have
connections to the other nodes only, as agents' clients do, and those called
walking know all nodes, are spread over them, and go to the next when their
connection ends or is silent for %v.

With --cut the nodes run in network namespaces, and the leader's is cut off: its
packets are dropped, and its peers and clients are not told. This wants root.

Goals: for a kill, p50 under %v and worst under %v; for a cut, worst of the
attached under %v.`, patience, goalMedian, goalWorst, goalCut),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := m.validate(); err != nil {
				return err
			}
			if m.cut && !isolated() {
				return isolate(c.Context(), p)
			}
			r, err := m.run(c.Context(), p)
			if err != nil {
				return failed(err)
			}
			if err := p.report(r); err != nil {
				return failed(err)
			}
			return p.judge(r.missed())
		},
	}
	f := c.Flags()
	f.IntVar(&m.runs, "runs", 20, "kill this `many` leaders")
	f.DurationVar(&m.every, "every", 6*time.Second, "leave at least this `time` between two kills")
	f.IntVar(&m.clients, "clients", 16, "run this `many` clients of each kind")
	f.IntVar(&m.servers, "servers", 3, "start this `many` servers")
	f.BoolVar(&m.cut, "cut", false, "cut the leader off instead of killing it")
	f.BoolVar(&p.noGoals, "no-goals", false, "only measure: exit with 0 when goals are missed")
	return c
}

func (m *failover) validate() error {
	return errors.Join(inRange("runs", m.runs, 1, maxRuns), inRange("every", m.every, 0, maxTime), inRange("clients", m.clients, 1, maxClients/2),
		inRange("servers", m.servers, 3, maxServers))
}

// judge makes an error of missed goals.
func (p *program) judge(missed []string) error {
	if len(missed) == 0 || p.noGoals {
		return nil
	}
	return fmt.Errorf("%w: %s", errMissed, strings.Join(missed, "; "))
}

// tooSlow says which goal is missed, if it is.
func tooSlow(what string, got millis, goal time.Duration) []string {
	if time.Duration(got) < goal {
		return nil
	}
	return []string{fmt.Sprintf("%s took %s ms, the goal is under %v", what, cell(got), goal)}
}

type failoverResult struct {
	Servers  int    `json:"servers"`
	Clients  int    `json:"clients"`
	Runs     int    `json:"runs"`
	Cut      bool   `json:"cut"`
	Attached spread `json:"attached"`
	Walking  spread `json:"walking"`
	// First is, of each run, the first grant that anybody got.
	First spread `json:"first"`
}

func (r *failoverResult) table() *table {
	t := &table{head: []string{"clients", "runs", "samples", "p50 ms", "p99 ms", "worst ms", "goal p50", "goal worst"}}
	median, worst, walking := any(goalMedian), any(goalWorst), any(goalWorst)
	if r.Cut {
		median, worst, walking = "-", goalCut, "-"
	}
	add := func(name string, s spread, goals ...any) {
		t.add(append(append([]any{name, r.Runs, s.Count}, s.cells()...), goals...)...)
	}
	add("attached", r.Attached, median, worst)
	add("walking", r.Walking, median, walking)
	add("first of all", r.First, "-", "-")
	return t
}

// missed lists the goals that were not met.
func (r *failoverResult) missed() (missed []string) {
	check := func(what string, got millis, goal time.Duration) {
		missed = append(missed, tooSlow(what, got, goal)...)
	}
	if r.Cut {
		check("the worst of the attached clients", r.Attached.Worst, goalCut)
		return missed
	}
	check("half of the attached clients", r.Attached.P50, goalMedian)
	check("the worst of the attached clients", r.Attached.Worst, goalWorst)
	check("half of the walking clients", r.Walking.P50, goalMedian)
	check("the worst of the walking clients", r.Walking.Worst, goalWorst)
	return missed
}

func (m *failover) run(ctx context.Context, p *program) (r *failoverResult, err error) {
	if err := allowFiles(2 * m.clients); err != nil {
		return nil, err
	}
	f, err := farm.New(ctx, farm.Options{Binary: p.lockerd, Servers: m.servers, Hosts: m.cut})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var attached, walking, first samples
	for i := range m.runs {
		next := time.After(m.every)
		a, w, err := m.once(ctx, f)
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", i+1, err)
		}
		attached, walking = append(attached, a...), append(walking, w...)
		if i < m.runs-1 {
			select {
			case <-next:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		first = append(first, slices.Min(slices.Concat(a, w)))
	}
	return &failoverResult{m.servers, m.clients, m.runs, m.cut, attached.spread(), walking.spread(), first.spread()}, nil
}

// once kills one leader and brings it back.
func (m *failover) once(ctx context.Context, f *farm.Farm) (attached, walking samples, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runTime, fmt.Errorf("not over within %v", runTime))
	defer cancel()
	if err := f.AwaitReady(ctx); err != nil {
		return nil, nil, err
	}
	lead, err := f.AwaitLeader(ctx)
	if err != nil {
		return nil, nil, err
	}
	var all, others []string
	for _, n := range f.Nodes {
		all = append(all, n.Client())
		if n != lead {
			others = append(others, n.Client())
		}
	}
	var clients []*busy
	for i := range m.clients {
		clients = append(clients,
			newBusy(fmt.Sprintf("attached-%d", i), others[i%len(others):i%len(others)+1]),
			newBusy(fmt.Sprintf("walking-%d", i), rotate(all, i)))
	}
	l := startLoad(ctx, clients)
	defer l.stop()
	if err := l.await(func(b *busy) bool { return b.pairs.Load() >= loadPairs }); err != nil {
		return nil, nil, err
	}
	// Not always at the same point of a heartbeat.
	select {
	case <-time.After(rand.N(200 * time.Millisecond)):
	case <-ctx.Done():
	}
	killed := time.Now()
	if m.cut {
		err = lead.Cut()
	} else {
		lead.Kill()
	}
	if err != nil {
		return nil, nil, err
	}
	// From here on nobody can be granted anything by it.
	l.mark()
	err = l.await(func(b *busy) bool { return b.grant.Load() != nil })
	l.stop()
	for i, b := range clients {
		g := b.grant.Load()
		switch {
		case g == nil:
		case i%2 == 0:
			attached = append(attached, g.Sub(killed))
		default:
			walking = append(walking, g.Sub(killed))
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if m.cut {
		err = lead.Heal()
	} else {
		err = lead.Start()
	}
	if err == nil {
		err = f.AwaitReady(ctx)
	}
	return attached, walking, err
}

func rotate(list []string, by int) []string {
	by %= len(list)
	return append(append([]string(nil), list[by:]...), list[:by]...)
}
