package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

const (
	// patience is how long a walking client waits for an answer before it asks the
	// next server.
	patience = 2 * time.Second
	// turned is the pause of a walking client whom all servers have turned away.
	turned = 10 * time.Millisecond
)

// busy is a client that locks and unlocks without end, whatever happens to the
// servers it knows.
type busy struct {
	*owner
	servers []string
	pause   time.Duration // after each pair

	pairs  atomic.Int64
	worst  atomic.Int64              // the longest pair, in nanoseconds
	marked atomic.Bool               // a LOCK sent from now on counts for grant
	grant  atomic.Pointer[time.Time] // when the first such was granted
	last   atomic.Pointer[error]     // what went wrong last
}

func newBusy(name string, servers []string) *busy {
	return &busy{owner: newOwner(name, name), servers: servers}
}

// run goes on until ctx ends. A client with one server only stays with it.
func (b *busy) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		if i > 0 && i%len(b.servers) == 0 {
			select {
			case <-time.After(turned):
			case <-ctx.Done():
				return
			}
		}
		if err := b.attend(ctx, b.servers[i%len(b.servers)]); err != nil {
			b.last.Store(&err)
		}
	}
}

// attend works on a connection to one server for as long as that answers.
func (b *busy) attend(ctx context.Context, addr string) error {
	within := replyTime
	d := dialerFor(0, 1, addr)
	if len(b.servers) > 1 {
		within = patience
		d.Timeout = patience
	}
	c, err := d.connect(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	for ctx.Err() == nil {
		counts := b.marked.Load()
		began := time.Now()
		if err := b.take(c, within); err != nil {
			return fmt.Errorf("lock at %s: %w", addr, err)
		}
		if counts && b.grant.Load() == nil {
			now := time.Now()
			b.grant.Store(&now)
		}
		if err := b.give(c, within); err != nil {
			return fmt.Errorf("unlock at %s: %w", addr, err)
		}
		b.pairs.Add(1)
		if took := int64(time.Since(began)); took > b.worst.Load() {
			b.worst.Store(took)
		}
		if b.pause > 0 {
			select {
			case <-time.After(b.pause):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// load is a crowd of busy clients.
type load struct {
	clients []*busy
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

func startLoad(ctx context.Context, clients []*busy) *load {
	l := &load{clients: clients}
	l.ctx, l.cancel = context.WithCancel(ctx)
	for _, b := range clients {
		l.wg.Go(func() { b.run(l.ctx) })
	}
	return l
}

// stop ends the clients. It may be called again.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

func (l *load) mark() {
	for _, b := range l.clients {
		b.marked.Store(true)
	}
}

// await waits until done is true of every client.
func (l *load) await(done func(*busy) bool) error {
	return farm.Await(l.ctx, "the clients", func() error {
		missing, last := 0, errors.New("no error")
		for _, b := range l.clients {
			if !done(b) {
				missing++
				if e := b.last.Load(); e != nil {
					last = *e
				}
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d clients stand still: %w", missing, len(l.clients), last)
		}
		return nil
	})
}
