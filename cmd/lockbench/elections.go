package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/systest/farm"
)

// elections counts the elections that a loaded machine causes.
type elections struct {
	time          time.Duration
	servers, busy int
	clients       int
}

// lightPause is between two pairs of a client that makes light load.
const lightPause = 20 * time.Millisecond

func (p *program) electionsCommand() *cobra.Command {
	var m elections
	c := &cobra.Command{
		Use:   "elections",
		Short: "Count needless elections on a busy machine",
		Long: `A cluster with a few calm clients runs beside processes that take all the time
of every core, and must not change its leader. Goal: no change of term.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := m.validate(); err != nil {
				return err
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
	f.DurationVar(&m.time, "for", time.Minute, "watch for this `long`")
	f.IntVar(&m.servers, "servers", 3, "start this `many` servers")
	f.IntVar(&m.busy, "busy", runtime.NumCPU(), "run this `many` busy loops beside them")
	f.IntVar(&m.clients, "clients", 4, "run this `many` calm clients")
	f.BoolVar(&p.noGoals, "no-goals", false, "only measure: exit with 0 when the goal is missed")
	return c
}

func (m *elections) validate() error {
	return errors.Join(inRange("for", m.time, time.Millisecond, maxTime), inRange("servers", m.servers, 1, maxServers),
		inRange("busy", m.busy, 0, 1024), inRange("clients", m.clients, 1, maxClients))
}

type electionsResult struct {
	Servers   int     `json:"servers"`
	Busy      int     `json:"busy"`
	Seconds   float64 `json:"seconds"`
	Elections uint64  `json:"elections"` // changes of term
	Pairs     int64   `json:"pairs"`
	Worst     millis  `json:"worst_pair_ms"`
}

func (r *electionsResult) table() *table {
	t := &table{head: []string{"servers", "busy loops", "seconds", "elections", "goal", "pairs", "worst ms"}}
	t.add(r.Servers, r.Busy, r.Seconds, r.Elections, 0, r.Pairs, r.Worst)
	return t
}

func (r *electionsResult) missed() []string {
	if r.Elections == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d elections, the goal is none", r.Elections)}
}

func (m *elections) run(ctx context.Context, p *program) (r *electionsResult, err error) {
	f, err := farm.New(ctx, farm.Options{Binary: p.lockerd, Servers: m.servers})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	before, err := newestTerm(ctx, f)
	if err != nil {
		return nil, err
	}
	loops, err := startLoops(m.busy)
	defer loops.stop()
	if err != nil {
		return nil, err
	}
	clients := make([]*busy, m.clients)
	for i := range clients {
		clients[i] = newBusy(fmt.Sprint("calm-", i), []string{f.Nodes[i%len(f.Nodes)].Client()})
		clients[i].pause = lightPause
	}
	began := time.Now()
	l := startLoad(ctx, clients)
	defer l.stop()
	select {
	case <-time.After(m.time):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	took := time.Since(began)
	l.stop()
	loops.stop()
	after, err := newestTerm(ctx, f)
	if err != nil {
		return nil, err
	}
	r = &electionsResult{Servers: m.servers, Busy: m.busy, Seconds: took.Round(time.Millisecond).Seconds(), Elections: after - before}
	for _, b := range clients {
		r.Pairs += b.pairs.Load()
		r.Worst = max(r.Worst, millis(b.worst.Load()))
		if b.pairs.Load() == 0 {
			return nil, fmt.Errorf("a calm client made no pair within %v", took)
		}
	}
	return r, nil
}

// newestTerm is the highest term that any node knows.
func newestTerm(ctx context.Context, f *farm.Farm) (term uint64, err error) {
	for _, n := range f.Nodes {
		s, err := n.Status(ctx)
		if err != nil {
			return 0, err
		}
		term = max(term, s.Term)
	}
	return term, nil
}

// loops are processes that do nothing but take time.
type loops struct{ running []*exec.Cmd }

func startLoops(n int) (*loops, error) {
	l := &loops{}
	for range n {
		c := exec.Command("/proc/self/exe", "spin")
		c.Args[0] = os.Args[0]
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			return l, fmt.Errorf("start a busy loop: %w", err)
		}
		l.running = append(l.running, c)
	}
	return l, nil
}

// stop may be called again.
func (l *loops) stop() {
	for _, c := range l.running {
		_ = c.Process.Kill()
		_ = c.Wait() // killed, as it should be
	}
	l.running = nil
}

func spinCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "spin",
		Short:  "Be a busy loop",
		Hidden: true,
		Args:   cobra.NoArgs,
		Run: func(c *cobra.Command, _ []string) {
			for c.Context().Err() == nil {
			}
		},
	}
}
