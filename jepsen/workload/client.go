package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/jepsen/history"
)

const (
	// opTime is how long a client tries before it gives an operation up. A fault
	// lasts at most five seconds, an election two, noticing a dead link nine.
	opTime = 20 * time.Second

	retryDelay     = 50 * time.Millisecond
	connectTimeout = time.Second
)

// Client is one user of the cluster, who does one thing at a time.
type Client struct {
	env     *Env
	number  int
	process int
	user    string
	rng     *rand.Rand
}

// renew makes the client another process and user.
func (c *Client) renew() {
	c.process = c.env.process()
	c.user = fmt.Sprintf("u%d", c.process)
}

// unknown gives the present user up.
func (c *Client) unknown() {
	c.env.Abandon(c.user)
	c.renew()
}

// Hold is what an Acquire got.
type Hold struct {
	Fence  uint64
	locker *client.Locker
	locks  []string
	limit  time.Duration // 0 without one
	proto  int           // by which a client without locker has got it
	gone   sync.WaitGroup
}

// options are those of all requests. Each client has a node that it tries first.
func (c *Client) options(locks []string) client.Options {
	hosts := make([]string, 0, len(c.env.Hosts))
	for i := range c.env.Hosts {
		hosts = append(hosts, c.env.Hosts[(c.number+i)%len(c.env.Hosts)])
	}
	return client.Options{
		Hosts: hosts, Locks: locks, User: c.user, HoldLimit: client.NoLimit,
		ConnectTries: 1 << 20, ConnectDelay: retryDelay, ConnectTimeout: connectTimeout,
	}
}

// acquire takes locks. It returns nil without an error when it did not get them.
func (c *Client) acquire(o client.Options) (*Hold, error) {
	note := history.Op{
		Process: c.process, F: history.Acquire, Locks: o.Locks, Owner: o.User,
		Try: o.Try, All: o.All, Slots: int(o.Slots), Node: o.Hosts[0],
	}
	switch {
	case o.Shared:
		note.Mode = "shared"
	case o.Slots > 0:
		note.Mode = "slots"
	}
	if o.HoldLimit > 0 {
		note.Limit = o.HoldLimit
	}
	if c.env.Raw {
		return c.lockOnce(o, note, 2)
	}
	process := c.process
	o.Hooks.Waiting = func(string) {
		c.env.Rec.Add(history.Op{Process: process, Type: history.Info, F: history.Queued, Locks: o.Locks, Owner: o.User})
	}
	l, err := client.New(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTime)
	defer cancel()
	note.Type = history.Invoke
	c.env.Rec.Add(note)
	err = l.Lock(ctx)
	done := note
	switch {
	case err == nil:
		done.Type, done.Locks, done.Fence = history.OK, l.LockNames(), l.Fence()
		c.env.Rec.Add(done)
	case errors.Is(err, client.ErrBusy):
		done.Type, done.Error = history.Fail, history.Busy
		c.env.Rec.Add(done)
		return nil, nil
	case errors.Is(err, client.ErrRefused):
		done.Type, done.Error = history.Fail, err.Error()
		c.env.Rec.Add(done)
		return nil, nil
	case errors.Is(err, client.ErrTimeout):
		// It was withdrawn, so the client says. Nobody cleans up behind it.
		done.Type, done.Error = history.Info, "gave up"
		c.env.Rec.Add(done)
		c.renew()
		return nil, nil
	default:
		done.Type, done.Error = history.Info, err.Error()
		c.env.Rec.Add(done)
		c.unknown()
		return nil, nil
	}
	h := &Hold{Fence: done.Fence, locker: l, locks: done.Locks, limit: note.Limit}
	lost := l.Lost()
	h.gone.Go(func() {
		if loss, ok := <-lost; ok {
			c.env.Rec.Add(history.Op{
				Process: process, Type: history.Info, F: history.Lost,
				Locks: done.Locks, Owner: o.User, Fence: done.Fence, Value: loss.String(),
			})
		}
	})
	return h, nil
}

// release gives a hold up.
func (c *Client) release(h *Hold) {
	if h.locker == nil {
		c.unlockOnce(h)
		return
	}
	note := history.Op{
		Process: c.process, Type: history.Invoke, F: history.Release,
		Locks: h.locks, Owner: c.user, Fence: h.Fence, Limit: h.limit,
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTime)
	defer cancel()
	c.env.Rec.Add(note)
	err := h.locker.Unlock(ctx)
	switch {
	case err == nil:
		note.Type = history.OK
	case errors.Is(err, client.ErrLost):
		note.Type, note.Error = history.Fail, "lost"
	default:
		note.Type, note.Error = history.Info, err.Error()
	}
	c.env.Rec.Add(note)
	h.gone.Wait()
	if note.Type == history.Info {
		c.unknown()
		return // Close would try for longer still
	}
	_ = h.locker.Close() // nothing is held
	if note.Type == history.Fail {
		// Servers count a limit in their own time, which an election stops: for them the
		// hold may last a while longer, and is in the way of what this user wants next.
		c.renew()
	}
}

// read asks who holds a lock.
func (c *Client) read(lock string) error {
	if c.env.Raw {
		_, _ = c.readOnce(lock, 2) // it is noted
		return nil
	}
	o := c.options([]string{lock})
	l, err := client.New(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTime)
	defer cancel()
	note := history.Op{Process: c.process, Type: history.Invoke, F: history.Read, Locks: o.Locks, Node: o.Hosts[0]}
	c.env.Rec.Add(note)
	note.Owner, err = l.Owner(ctx)
	note.Type = history.OK
	if err != nil {
		note.Type, note.Error = history.Info, err.Error()
	}
	c.env.Rec.Add(note)
	if err != nil {
		c.renew() // a read takes nothing, so there is nothing to abandon
	}
	return nil
}
