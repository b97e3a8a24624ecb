package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/transport"
)

// handoff measures one lock that many wait for.
type handoff struct {
	target
	waiters int
	time    time.Duration
	proto   int
}

func (p *program) handoffCommand() *cobra.Command {
	var m handoff
	c := &cobra.Command{
		Use:   "handoff",
		Short: "Pass one lock through a queue",
		Long: `One client holds a lock and many wait for it. Each releases it as soon as it has
got it. The time of a handoff is from sending the UNLOCK to the next client's
reading of its grant. When the queue is empty before the time is over, it is
filled again; the time it takes to queue does not count.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := m.validate(); err != nil {
				return err
			}
			return m.run(c.Context(), p)
		},
	}
	m.flags(c)
	f := c.Flags()
	f.IntVar(&m.waiters, "waiters", 100, "this `many` clients wait, spread over the servers")
	f.DurationVar(&m.time, "for", 3*time.Second, "measure for this `long`")
	f.IntVar(&m.proto, "proto", 1, "protocol `version`: 1 is IPC::Locker's")
	return c
}

func (m *handoff) validate() error {
	if m.proto != 1 && m.proto != 2 {
		return fmt.Errorf("--proto %d: there are 1 and 2", m.proto)
	}
	return errors.Join(m.target.validate(), inRange("waiters", m.waiters, 1, maxClients),
		inRange("for", m.time, time.Millisecond, maxTime))
}

func (m *handoff) run(ctx context.Context, p *program) error {
	if err := allowFiles(m.waiters + 1); err != nil {
		return err
	}
	addrs, closing, err := m.open(ctx, p)
	if err != nil {
		return err
	}
	r, err := m.measure(ctx, addrs)
	if err = errors.Join(err, closing()); err != nil {
		return failed(err)
	}
	return p.report(r)
}

type handoffResult struct {
	Servers int     `json:"servers"`
	Waiters int     `json:"waiters"`
	Proto   int     `json:"proto"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"handoffs_per_second"`
	Handoff spread  `json:"handoff"`
	Queued  float64 `json:"queued_per_second"`
	// Swaps counts the handoffs to a client that was queued after one that still
	// waits. Clients queue at the same time over several servers, so that there is
	// no order among those that overlap: only clear cases count.
	Swaps int `json:"swaps"`
}

func (r *handoffResult) table() *table {
	t := &table{head: []string{"servers", "waiters", "proto", "queued/s", "handoffs/s", "p50 ms", "p99 ms", "worst ms", "swaps"}}
	t.add(append(append([]any{r.Servers, r.Waiters, r.Proto, r.Queued, r.Rate}, r.Handoff.cells()...), r.Swaps)...)
	return t
}

// waiter is a client in the queue of one round.
type waiter struct {
	*conn
	*owner
	asked, queued time.Time
}

// measure fills and empties the queue until the time is over.
func (m *handoff) measure(ctx context.Context, addrs []string) (*handoffResult, error) {
	conns, err := connectAll(ctx, m.waiters+1, m.proto, addrs)
	defer closeAll(conns)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { closeAll(conns) })
	defer stop()
	r := &handoffResult{Servers: len(addrs), Waiters: m.waiters, Proto: m.proto}
	var all samples
	var queueing, passing time.Duration
	queued := 0
	for passing < m.time && len(all) < maxSamples && ctx.Err() == nil {
		round, err := m.queue(ctx, conns)
		if err != nil {
			return nil, err
		}
		queueing += round.queueing
		queued += m.waiters
		s, took, err := round.pass(ctx, m.time-passing)
		if err != nil {
			return nil, err
		}
		all, passing = append(all, s...), passing+took
		r.Swaps += round.swaps
		if len(s) < m.waiters {
			break // the time was over within the round; the queue is left
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	r.Seconds, r.Rate, r.Queued = passing.Seconds(), rate(len(all), passing), rate(queued, queueing)
	r.Handoff = all.spread()
	return r, nil
}

// round is one filling of the queue.
type round struct {
	first    *waiter
	waiters  []*waiter
	queueing time.Duration
	swaps    int
}

// queueing is how many clients ask for the lock at a time.
const queueing = 1024

// queue lets the first client lock and all others wait.
func (m *handoff) queue(ctx context.Context, conns []*conn) (*round, error) {
	all := make([]*waiter, len(conns))
	for i, c := range conns {
		all[i] = &waiter{conn: c, owner: newOwner(fmt.Sprintf("bench-%d", i), "bench")}
	}
	r := &round{first: all[0], waiters: all[1:]}
	if err := r.first.take(r.first.conn, replyTime); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	began := time.Now()
	err := each(ctx, len(r.waiters), queueing, func(_ context.Context, i int) error { return r.waiters[i].queue() })
	r.queueing = time.Since(began)
	return r, err
}

// queue asks for the lock and returns once the server has said that it is busy.
func (w *waiter) queue() error {
	w.asked = time.Now()
	w.put(&w.lock)
	if err := w.send(); err != nil {
		return err
	}
	if err := w.SetReadDeadline(time.Now().Add(replyTime)); err != nil {
		return err
	}
	for {
		r, err := w.in.Next()
		switch {
		case err != nil:
			return fmt.Errorf("queue: %w", err)
		case r.Kind == transport.ReplyWaiting:
			w.queued = time.Now()
			return nil
		case r.Kind == transport.ReplyStatus:
			return fmt.Errorf("a LOCK of a held lock was answered at once: %+v", r.Status)
		}
	}
}

// pass starts the handing over and measures until the queue is empty or the time
// is over.
func (r *round) pass(ctx context.Context, most time.Duration) (s samples, took time.Duration, err error) {
	var (
		mu       sync.Mutex
		order    []*waiter
		released atomic.Int64 // when the holder sent its UNLOCK
		over     atomic.Bool  // the time is
	)
	began := time.Now()
	end := func() {
		for _, w := range r.waiters {
			_ = w.SetReadDeadline(time.Unix(1, 0))
		}
	}
	timer := time.AfterFunc(most, func() {
		over.Store(true)
		end()
	})
	defer timer.Stop()
	for _, w := range r.waiters {
		if err := w.SetReadDeadline(time.Now().Add(most + replyTime)); err != nil {
			return nil, 0, err
		}
	}
	err = each(ctx, len(r.waiters)+1, 0, func(ctx context.Context, i int) error {
		if i == len(r.waiters) {
			// The last to be started: the others listen, or are about to.
			released.Store(int64(time.Since(began)))
			return r.first.give(r.first.conn, replyTime)
		}
		w := r.waiters[i]
		defer context.AfterFunc(ctx, func() { _ = w.Close() })()
		st, err := w.granted()
		now := time.Since(began)
		switch {
		case over.Load():
			return nil
		case err != nil:
			return fmt.Errorf("wait for the lock: %w", err)
		case !st.Locked:
			return errors.New("a wait was answered without a lock")
		}
		mu.Lock()
		s = append(s, now-time.Duration(released.Load()))
		order = append(order, w)
		took = now
		mu.Unlock()
		released.Store(int64(time.Since(began)))
		if err := w.give(w.conn, replyTime); err != nil && !over.Load() {
			return fmt.Errorf("unlock: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	if over.Load() {
		took = most
	}
	r.swaps = swaps(order)
	return s, took, nil
}

// granted reads the grant, without touching the deadline.
func (w *waiter) granted() (transport.Status, error) {
	for {
		r, err := w.in.Next()
		if err != nil {
			return transport.Status{}, err
		}
		if r.Kind == transport.ReplyStatus {
			if r.Status.Fault != nil {
				return r.Status, r.Status.Fault
			}
			return r.Status, nil
		}
	}
}

// swaps counts those in an order of grants that were known to be queued before
// one granted earlier had asked.
func swaps(order []*waiter) int {
	n := 0
	var latest time.Time // the latest asking among those granted so far
	for _, w := range order {
		if w.queued.Before(latest) {
			n++
		}
		if w.asked.After(latest) {
			latest = w.asked
		}
	}
	return n
}
