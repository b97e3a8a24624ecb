package workload

import (
	"context"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// original does an action as a client of IPC::Locker would. Each hold has a user of its
// own, by which its fence is found in what the servers say: the client is told none.
func (c *Client) original(ctx context.Context, a gen.Action) error {
	lock := c.env.names(a.Locks)
	if a.Read {
		_, _ = c.readOnce(lock[0], 1) // it is noted
		return nil
	}
	c.renew()
	o := c.options(lock)
	o.Try = a.Try
	h, err := c.lockOriginal(o)
	if h == nil {
		return err
	}
	_ = pause(ctx, a.Hold)
	c.release(h)
	return nil
}

// lockOriginal takes a lock by the protocol of IPC::Locker.
func (c *Client) lockOriginal(o client.Options) (*Hold, error) {
	return c.lockOnce(o, history.Op{
		Process: c.process, F: history.Acquire, Locks: o.Locks, Owner: o.User, Try: o.Try, Node: o.Hosts[0],
	}, 1)
}
