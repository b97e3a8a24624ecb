package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// warmUp is how long clients run before they are measured.
const warmUp = 500 * time.Millisecond

// pairs measures locks and unlocks that nobody competes for.
type pairs struct {
	target
	clients   int
	time      time.Duration
	proto     int
	reconnect bool
	pipeline  int
}

func (p *program) pairsCommand() *cobra.Command {
	var m pairs
	c := &cobra.Command{
		Use:   "pairs",
		Short: "Lock and unlock, each client its own lock",
		Long: `Each client locks and unlocks a lock of its own, over and over, on a connection
that it keeps. The time of a pair is from sending the LOCK to reading the answer
to the UNLOCK.`,
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
	f.IntVar(&m.clients, "clients", 1, "run this `many` clients, spread over the servers")
	f.DurationVar(&m.time, "for", 3*time.Second, "measure for this `long`")
	f.IntVar(&m.proto, "proto", 1, "protocol `version`: 1 is IPC::Locker's")
	f.BoolVar(&m.reconnect, "reconnect", false, "a connection for each request, as IPC::Locker makes them")
	f.IntVar(&m.pipeline, "pipeline", 1, "`pairs` under way at a time on each connection")
	return c
}

func (m *pairs) validate() error {
	switch {
	case m.proto != 1 && m.proto != 2:
		return fmt.Errorf("--proto %d: there are 1 and 2", m.proto)
	case m.reconnect && m.pipeline > 1:
		return errors.New("--reconnect has one request on a connection: leave --pipeline out")
	}
	return errors.Join(m.target.validate(), inRange("clients", m.clients, 1, maxClients),
		inRange("for", m.time, time.Millisecond, maxTime), inRange("pipeline", m.pipeline, 1, maxPipeline))
}

func (m *pairs) run(ctx context.Context, p *program) error {
	if err := allowFiles(m.clients); err != nil {
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

type pairsResult struct {
	Servers   int     `json:"servers"`
	Clients   int     `json:"clients"`
	Proto     int     `json:"proto"`
	Reconnect bool    `json:"reconnect"`
	Pipeline  int     `json:"pipeline"`
	Seconds   float64 `json:"seconds"`
	Rate      float64 `json:"pairs_per_second"`
	Pair      spread  `json:"pair"`
}

func (r *pairsResult) table() *table {
	t := &table{head: []string{"servers", "clients", "proto", "reconnect", "pipeline", "pairs/s", "p50 ms", "p99 ms", "worst ms"}}
	t.add(append([]any{r.Servers, r.Clients, r.Proto, r.Reconnect, r.Pipeline, r.Rate}, r.Pair.cells()...)...)
	return t
}

// window is the time in which samples count.
type window struct{ begin, end time.Time }

// measure runs the clients against the servers at addrs.
func (m *pairs) measure(ctx context.Context, addrs []string) (*pairsResult, error) {
	var conns []*conn
	if !m.reconnect {
		var err error
		conns, err = connectAll(ctx, m.clients, m.proto, addrs)
		defer closeAll(conns)
		if err != nil {
			return nil, err
		}
	}
	begin := time.Now().Add(min(warmUp, m.time))
	w := window{begin, begin.Add(m.time)}
	parts := make([]samples, m.clients)
	most := maxSamples / m.clients
	err := each(ctx, m.clients, 0, func(ctx context.Context, i int) (err error) {
		o := newOwner(fmt.Sprintf("bench-%d", i), fmt.Sprintf("bench-%d", i))
		if m.reconnect {
			addr := addrs[i%len(addrs)]
			parts[i], err = o.reconnecting(ctx, dialerFor(i, m.proto, addr), addr, w, most)
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = conns[i].Close() })()
		if m.pipeline > 1 {
			parts[i], err = pipelined(conns[i], i, m.pipeline, w, most)
		} else {
			parts[i], err = o.pairs(conns[i], w, most)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var all samples
	for _, s := range parts {
		all = append(all, s...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no pair within %v", m.time)
	}
	return &pairsResult{
		len(addrs), m.clients, m.proto, m.reconnect, m.pipeline, m.time.Seconds(), rate(len(all), m.time), all.spread(),
	}, nil
}

// count appends a pair that was asked for at began, if it ended within the window.
func (w window) count(s samples, began, ended time.Time) samples {
	if ended.Before(w.begin) || ended.After(w.end) {
		return s
	}
	return append(s, ended.Sub(began))
}

// pairs locks and unlocks until the window ends.
func (o *owner) pairs(c *conn, w window, most int) (s samples, err error) {
	for now := time.Now(); now.Before(w.end) && len(s) < most; {
		began := now
		if err := o.take(c, replyTime); err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := o.give(c, replyTime); err != nil {
			return nil, fmt.Errorf("unlock: %w", err)
		}
		now = time.Now()
		s = w.count(s, began, now)
	}
	return s, nil
}

func (o *owner) reconnecting(ctx context.Context, d *dialer, addr string, w window, most int) (s samples, err error) {
	for now := time.Now(); now.Before(w.end) && len(s) < most; {
		began := now
		if err := o.once(ctx, d, addr, &o.lock); err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := o.once(ctx, d, addr, &o.unlock); err != nil {
			return nil, fmt.Errorf("unlock: %w", err)
		}
		now = time.Now()
		s = w.count(s, began, now)
	}
	return s, nil
}

// pipelined keeps depth pairs, of as many locks, under way. Their requests are
// small enough that both directions fit the sockets' buffers.
func pipelined(c *conn, client, depth int, w window, most int) (s samples, err error) {
	owners := make([]*owner, depth)
	began := make([]time.Time, depth)
	for i := range owners {
		name := fmt.Sprintf("bench-%d-%d", client, i)
		owners[i] = newOwner(name, name)
	}
	under := 0 // pairs under way
	for next, oldest := 0, 0; ; {
		now := time.Now()
		for ; under < depth && now.Before(w.end) && len(s) < most; under++ {
			began[next] = now
			c.put(&owners[next].lock)
			c.put(&owners[next].unlock)
			next = (next + 1) % depth
		}
		if len(c.out) > 0 {
			if err := c.send(); err != nil {
				return nil, err
			}
		}
		if under == 0 {
			return s, nil
		}
		// What has been read is taken before more is written.
		for more := true; more; more = under > 0 && c.in.Buffered() > 0 {
			lock, err := c.status(replyTime)
			if err != nil || !lock.Locked {
				return nil, fmt.Errorf("lock: held %v: %w", lock.Locked, err)
			}
			if _, err := c.status(replyTime); err != nil {
				return nil, fmt.Errorf("unlock: %w", err)
			}
			s = w.count(s, began[oldest], time.Now())
			oldest = (oldest + 1) % depth
			under--
		}
	}
}
