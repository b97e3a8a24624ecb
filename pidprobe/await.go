package pidprobe

import (
	"context"
	"errors"
	"time"
)

// Await returns nil when a process of this host has ended, which it is told by the
// kernel. Otherwise it returns [ErrPID], the context's error, or why it cannot
// wait. For many processes take a [Watcher].
func Await(ctx context.Context, p Process) error {
	dead := make(chan struct{})
	w, err := NewWatcher(func(Process) { close(dead) }, nil)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Watch(p); err != nil {
		return err
	}
	select {
	case <-dead:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// AwaitDeath returns nil when a process has ended. For one of another host it asks
// that host's pidstatd once a second, and does not return while there is no answer:
// whoever is out of reach may live. Errors are [ErrPID], [ErrNoHost], the context's,
// or why it cannot wait.
func (c *Client) AwaitDeath(ctx context.Context, host string, pid int32) error {
	if pid < 1 {
		return ErrPID
	}
	if c.Local(host) {
		p, err := Lookup(pid)
		switch {
		case errors.Is(err, ErrDead):
			return nil
		case err != nil:
			p = Process{PID: pid}
		}
		return Await(ctx, p)
	}
	addrs, err := c.resolve(ctx, host)
	if err != nil {
		return err
	}
	tick := time.NewTicker(askWait)
	defer tick.Stop()
	for try := 0; ; try++ {
		// Silence is how one that lives answers: only word of a death is asked for.
		v, err := c.ask(ctx, addrs[try%len(addrs)], host, pid, IfDead)
		if err == nil && v == Dead {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Resolve finds a host, so that [Client.Exists] and [Client.AwaitDeath] need not
// within the next half minute. The error is [ErrNoHost] or the context's.
func (c *Client) Resolve(ctx context.Context, host string) error {
	if c.Local(host) {
		return nil
	}
	_, err := c.resolve(ctx, host)
	return err
}
