package workload

import (
	"context"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// All are the workloads, by which users know them.
var All = []Workload{
	{
		Name: "mutex", About: "lock, hold, unlock; some do not wait, some only look",
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			if a.Read {
				return c.read(c.env.names(a.Locks[:1])[0])
			}
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "fifo", About: "all wait for one lock, and are served as they came",
		Mix: func(m *gen.Mix) { m.Locks, m.Try, m.Read, m.Hold = 1, 0, 0, 5*time.Millisecond },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "anyof", About: "lock any one of up to four",
		Mix: func(m *gen.Mix) { m.Names, m.Read = 4, 0 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "allof", About: "lock all of up to three at once",
		Mix: func(m *gen.Mix) { m.Names, m.Read = 3, 0 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.hold(ctx, a, func(o *client.Options) { o.All = true })
		},
	},
	{
		Name: "shared", About: "readers share, writers do not",
		Mix: func(m *gen.Mix) { m.Read = 0 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.hold(ctx, a, func(o *client.Options) { o.Shared = a.Roll < 0.7 })
		},
	},
	{
		Name: "slots", About: "three at a time",
		Mix: func(m *gen.Mix) { m.Read = 0 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.hold(ctx, a, func(o *client.Options) { o.Slots = 3 })
		},
	},
	{
		Name: "status", About: "look who holds what, while locks move",
		Mix: func(m *gen.Mix) { m.Read, m.Hold = 0.6, 5*time.Millisecond },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			if a.Read {
				return c.read(c.env.names(a.Locks[:1])[0])
			}
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "timeout", About: "holds with limits, half of these short, and half of those kept longer", Loses: true,
		Mix: func(m *gen.Mix) { m.Read, m.Hold = 0, 500*time.Millisecond },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.hold(ctx, a, func(o *client.Options) {
				o.HoldLimit = 400 * time.Millisecond
				if a.Roll < 0.5 {
					// So much that the end of a hold before its time is one, too, where news
					// of it takes a second.
					o.HoldLimit = 4 * time.Second
				}
			})
		},
	},
	{
		Name: "autounlock", About: "holds of processes, half of which are killed", Loses: true,
		Mix: func(m *gen.Mix) { m.Read, m.Hold = 0, 50*time.Millisecond },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.holdOfChild(ctx, a)
		},
	},
	{
		Name: "faraway", About: "as autounlock, with the original protocol, on a host without a node", Loses: true, Far: true,
		// The leader believes an answer about a hold that is five seconds old or more.
		Mix: func(m *gen.Mix) { m.Locks, m.Read, m.Hold = 2*m.Locks, 0, 2*time.Second },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.holdOfChild(ctx, a)
		},
	},
	{
		Name: "compat", About: "half of the clients speak the protocol of IPC::Locker",
		Mix: func(m *gen.Mix) { m.Names = 2 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			switch {
			case c.number%2 == 0:
				return c.original(ctx, a)
			case a.Read:
				return c.read(Lock(a.Locks[0]))
			}
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "giveup", About: "half of those who wait give up soon; nothing may remain of that",
		Mix: func(m *gen.Mix) { m.Hold = 60 * time.Millisecond },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			if a.Read {
				return c.read(c.env.names(a.Locks[:1])[0])
			}
			return c.hold(ctx, a, func(o *client.Options) {
				if a.Roll < 0.5 {
					o.WaitLimit = 10*time.Millisecond + time.Duration(a.Roll*float64(400*time.Millisecond))
				}
			})
		},
	},
	{
		Name: "break", About: "holds that anybody may break", Loses: true,
		Mix: func(m *gen.Mix) { m.Hold = 50 * time.Millisecond },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			switch {
			case a.Roll < 0.15:
				c.breakLock(c.env.names(a.Locks[:1])[0])
				return nil
			case a.Read:
				return c.read(c.env.names(a.Locks[:1])[0])
			}
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "fenced", About: "as set, by processes of which some are stopped past their leases", Loses: true,
		Mix: func(m *gen.Mix) { m.Locks, m.Try, m.Read = 1, 0, 0 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.addByHolder(ctx, a)
		},
	},
	{
		Name: "freeze", About: "file systems and processes are frozen by orders, on one node or all; some who ask vanish, some guards are killed", Freezes: true,
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			if c.number < freezers {
				return c.freeze(ctx, a)
			}
			return c.hold(ctx, a, func(*client.Options) {})
		},
	},
	{
		Name: "set", About: "add to a set under the lock: read, work, write back",
		Mix: func(m *gen.Mix) { m.Locks, m.Try, m.Read = 1, 0, 0 },
		Act: func(ctx context.Context, c *Client, a gen.Action) error {
			return c.add(ctx, a)
		},
	},
}

// Named finds a workload.
func Named(name string) (Workload, bool) {
	for _, w := range All {
		if w.Name == name {
			return w, true
		}
	}
	return Workload{}, false
}

// hold takes what the action names, keeps it, and gives it up.
func (c *Client) hold(ctx context.Context, a gen.Action, adapt func(*client.Options)) error {
	o := c.options(c.env.names(a.Locks))
	o.Try = a.Try
	adapt(&o)
	h, err := c.acquire(o)
	if h == nil {
		return err
	}
	_ = pause(ctx, a.Hold) // a run that ends cuts it short
	c.release(h)
	return nil
}

// breakLock ends whoever holds the lock.
func (c *Client) breakLock(lock string) {
	by := c.user + "-" + time.Duration(c.rng.Int64N(1<<40)).String()
	note := history.Op{Process: c.process, Type: history.Invoke, F: history.Break, Locks: []string{lock}, Value: by}
	ctx, cancel := context.WithTimeout(context.Background(), opTime)
	defer cancel()
	c.env.Rec.Add(note)
	owners, err := c.env.Break(ctx, c.number%len(c.env.Hosts), lock, by)
	note.Type = history.OK
	if len(owners) > 0 {
		note.Owner = owners[0]
	}
	if err != nil {
		note.Type, note.Error = history.Info, err.Error()
	}
	c.env.Rec.Add(note)
	if err != nil {
		c.renew()
	}
}
