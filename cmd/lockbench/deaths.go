package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/pidprobe"
	"github.com/lockerd/lockerd/systest/farm"
	"github.com/lockerd/lockerd/transport"
)

// Goals of a death.
const (
	goalDeathMedian = 20 * time.Millisecond
	goalDeathP99    = 100 * time.Millisecond
)

const (
	deathTime = 20 * time.Second // for one run
	maxDeaths = 100_000
)

// deaths measures how soon a lock is granted whose holder has died.
type deaths struct {
	runs, servers int
}

func (p *program) deathsCommand() *cobra.Command {
	var m deaths
	c := &cobra.Command{
		Use:   "deaths",
		Short: "Kill holders, and time the next ones",
		Long: fmt.Sprintf(`A process holds a lock with autounlock, another client waits for it at another
node, and the process is killed with SIGKILL. What is timed is from just before
kill(2) to the waiter's having read its grant, both by one clock.

It is the death that frees the lock, and nothing else: the holder is a process
that does nothing at all. Its LOCK is sent for it, with its number and start time,
over a connection that stays open; a hold outlives its connection anyhow. It is
not reaped before the grant.

As root, every server has a host's name of its own, and the holder counts as one
of a single host, another one each time: that server alone watches it, as it would
be with real hosts. Otherwise all servers take it for a process of their host, and
whoever is the first to see its death reports it.

Goals: p50 under %v, p99 under %v.`, goalDeathMedian, goalDeathP99),
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
	f.IntVar(&m.runs, "runs", 200, "kill this `many` holders, one after the other")
	f.IntVar(&m.servers, "servers", 3, "start this `many` servers")
	f.BoolVar(&p.noGoals, "no-goals", false, "only measure: exit with 0 when goals are missed")
	return c
}

func (m *deaths) validate() error {
	return errors.Join(inRange("runs", m.runs, 1, maxDeaths), inRange("servers", m.servers, 1, maxServers))
}

type deathsResult struct {
	Servers  int    `json:"servers"`
	Runs     int    `json:"runs"`
	Watchers int    `json:"watchers"` // servers that watch each holder
	Death    spread `json:"death"`
}

func (r *deathsResult) table() *table {
	t := &table{head: []string{"servers", "holders killed", "watched by", "p50 ms", "p99 ms", "worst ms", "goal p50", "goal p99"}}
	t.add(append(append([]any{r.Servers, r.Runs, r.Watchers}, r.Death.cells()...), goalDeathMedian, goalDeathP99)...)
	return t
}

func (r *deathsResult) missed() []string {
	return append(tooSlow("half of the deaths", r.Death.P50, goalDeathMedian), tooSlow("99% of the deaths", r.Death.P99, goalDeathP99)...)
}

func (m *deaths) run(ctx context.Context, p *program) (r *deathsResult, err error) {
	named := farm.CanName()
	f, err := farm.New(ctx, farm.Options{Binary: p.lockerd, Servers: m.servers, Named: named})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	conns, err := connectNodes(ctx, f)
	defer closeAll(conns)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { closeAll(conns) })
	defer stop()
	var all samples
	for i := range m.runs {
		home, other := i%len(f.Nodes), (i+1)%len(f.Nodes)
		// Two connections to each node: the second ones are the waiters'.
		took, err := die(ctx, fmt.Sprint("bench-", i), f.Nodes[home], named, conns[home], conns[len(f.Nodes)+other])
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", i+1, err)
		}
		all = append(all, took)
	}
	r = &deathsResult{Servers: m.servers, Runs: m.runs, Watchers: m.servers, Death: all.spread()}
	if named {
		r.Watchers = 1
	}
	return r, nil
}

// connectNodes connects to every node twice.
func connectNodes(ctx context.Context, f *farm.Farm) ([]*conn, error) {
	var addrs []string
	for _, n := range f.Nodes {
		addrs = append(addrs, n.Client())
	}
	return connectAll(ctx, 2*len(addrs), 2, addrs)
}

// die lets a process on the host of a node hold a lock, kills it, and returns how
// long after that a waiter has read its grant.
func die(ctx context.Context, lock string, home *farm.Node, named bool, own, other *conn) (time.Duration, error) {
	victim, err := startIdle()
	if err != nil {
		return 0, err
	}
	defer func() {
		_ = victim.Process.Kill()
		_ = victim.Wait() // killed, as it should be
	}()
	q, err := lockFor(victim.Process.Pid, lock, home, named)
	if err != nil {
		return 0, err
	}
	switch st, err := own.ask(q, replyTime); {
	case err != nil:
		return 0, fmt.Errorf("lock for the holder: %w", err)
	case !st.Locked:
		return 0, fmt.Errorf("the holder's LOCK was answered without a lock; it is held by %q", st.Owner)
	}
	next := &waiter{conn: other, owner: newOwner("waiter-"+lock, lock)}
	if err := next.queue(); err != nil {
		return 0, err
	}
	// Not always at the same point of a heartbeat.
	select {
	case <-time.After(rand.N(50 * time.Millisecond)):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if err := next.SetReadDeadline(time.Now().Add(deathTime)); err != nil {
		return 0, err
	}
	type grant struct {
		transport.Status
		at  time.Time
		err error
	}
	granted := make(chan grant, 1)
	go func() {
		st, err := next.granted()
		granted <- grant{st, time.Now(), err}
	}()
	killed := time.Now()
	if err := victim.Process.Kill(); err != nil {
		return 0, fmt.Errorf("kill the holder: %w", err)
	}
	g := <-granted
	switch {
	case g.err != nil:
		return 0, fmt.Errorf("the holder is dead, and the waiter is not granted its lock: %w", g.err)
	case !g.Locked:
		return 0, errors.New("a wait was answered without a lock")
	case g.at.Before(killed):
		return 0, errors.New("the lock was granted to another while its holder lived")
	}
	if err := next.give(next.conn, replyTime); err != nil {
		return 0, fmt.Errorf("unlock: %w", err)
	}
	return g.at.Sub(killed), nil
}

// lockFor is the LOCK of a process.
func lockFor(pid int, lock string, home *farm.Node, named bool) (*transport.Request, error) {
	p, err := pidprobe.Lookup(int32(pid))
	if err != nil {
		return nil, fmt.Errorf("identify the holder: %w", err)
	}
	q := newOwner("holder-"+lock, lock).lock
	q.Autounlock, q.Host, q.PID, q.Start = true, home.Hostname(), p.PID, p.Start
	if !named {
		// Of this kernel. With names of its own for each host, the name decides.
		q.Boot = pidprobe.Here()
	}
	return &q, nil
}

// startIdle starts a process that does nothing.
func startIdle() (*exec.Cmd, error) {
	c := exec.Command("/proc/self/exe", "idle")
	c.Args[0] = os.Args[0]
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start a holder: %w", err)
	}
	return c, nil
}

func idleCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "idle",
		Short:  "Do nothing",
		Hidden: true,
		Args:   cobra.NoArgs,
		Run:    func(c *cobra.Command, _ []string) { <-c.Context().Done() },
	}
}
