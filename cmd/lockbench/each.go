package main

import (
	"context"
	"errors"
	"sync"
)

// connecting is how many connections are made at a time.
const connecting = 256

// each calls f for 0 to n-1 at the same time, or at most limit of them at a time
// if that is not 0, and waits for all. The first error ends the context of the
// others and is returned; that of ctx comes before it.
func each(ctx context.Context, n, limit int, f func(ctx context.Context, i int) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if limit == 0 {
		limit = n
	}
	turns := make(chan struct{}, limit)
	var wg sync.WaitGroup
	for i := range n {
		select {
		case turns <- struct{}{}:
		case <-inner.Done():
		}
		if inner.Err() != nil {
			break
		}
		wg.Go(func() {
			if err := f(inner, i); err != nil {
				cancel(err)
			}
			<-turns
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := context.Cause(inner); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// connectAll connects n clients, spread over the servers. The caller closes what
// it returns, with an error too.
func connectAll(ctx context.Context, n, proto int, addrs []string) ([]*conn, error) {
	conns := make([]*conn, n)
	err := each(ctx, n, connecting, func(ctx context.Context, i int) (err error) {
		addr := addrs[i%len(addrs)]
		conns[i], err = dialerFor(i, proto, addr).connect(ctx, addr)
		return err
	})
	return conns, err
}
