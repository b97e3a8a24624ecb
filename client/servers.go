package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// servers is the list of servers in the order in which they are tried.
type servers struct {
	mu   sync.Mutex
	list []endpoint
}

func (s *servers) order() []endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// promote puts a server that has answered first.
func (s *servers) promote(at endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.list, at); i > 0 {
		s.list = slices.Insert(slices.Delete(s.list, i, i+1), 0, at)
	}
}

// demote puts a server last that is not worth waiting for now.
func (s *servers) demote(at endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.list, at); i >= 0 {
		s.list = append(slices.Delete(s.list, i, i+1), at)
	}
}

// maxServers bounds the list that servers can add to.
const maxServers = 64

// moved puts the servers that a stopping one has named first, and that one last.
func (s *servers) moved(from endpoint, addrs []string) {
	s.demote(from)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range slices.Backward(addrs) {
		host, port, err := splitHostPort(a)
		if err != nil || host == "" || !isPort(port) {
			continue
		}
		at := endpoint{"tcp", a}
		if i := slices.Index(s.list, at); i >= 0 {
			s.list = slices.Delete(s.list, i, i+1)
		} else if len(s.list) >= maxServers {
			continue
		}
		s.list = slices.Insert(s.list, 0, at)
	}
}

const (
	// placeKept is how long a cluster keeps the place of a waiter whose node has
	// gone, and so how long we hurry.
	placeKept = 10 * time.Second
	// electionTime is how long a request that is not to wait waits for a leader.
	electionTime = 2 * time.Second
	// The pauses while we hurry: they double from the first to the last.
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// retries paces the walks over the list of servers. In a hurry the pauses are
// short; otherwise they are those of Options, and counted.
type retries struct {
	left  int
	delay time.Duration
	pause time.Duration
	until time.Time // the end of the hurry
	spent bool      // the hurry for want of a leader has been had
}

// hurry is called when a place in a queue, or a hold, is at stake.
func (r *retries) hurry() {
	now := time.Now()
	if now.After(r.until) {
		r.pause = firstPause // otherwise we are in one already
	}
	r.until = now.Add(placeKept)
}

// next is the pause before the next walk; false when there is to be none.
func (r *retries) next() (pause time.Duration, hurried, ok bool) {
	if time.Now().Before(r.until) {
		pause = r.pause
		r.pause = min(2*r.pause, lastPause)
		return pause/2 + rand.N(pause/2+1), true, true
	}
	if r.left--; r.left <= 0 {
		return 0, false, false
	}
	return r.delay + rand.N(r.delay+1), false, true
}

// do runs f with a connection to the first server that takes it, again and again
// while f's error is errAgain and the retries last. f owns the connection.
func (l *Locker) do(ctx context.Context, r *retries, f func(*conn) error) error {
	for {
		err := l.walk(ctx, f)
		if !errors.Is(err, errAgain) {
			return err
		}
		if isNoLeader(err) && !r.spent {
			r.spent = true // elections are short
			r.hurry()
			if l.opts.Try {
				r.until = time.Now().Add(electionTime)
			}
		}
		pause, hurried, ok := r.next()
		if !ok {
			err = fmt.Errorf("%w at %s: %w", ErrNoServer, describe(l.servers.order()), err)
			if l.opts.Hooks.Down != nil {
				l.opts.Hooks.Down(err)
			}
			return err
		}
		if !hurried && l.opts.Hooks.Retry != nil {
			l.opts.Hooks.Retry(pause, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// walk tries each server once. Its error is the last one's, unless an earlier one
// had more to say than that nobody listens.
func (l *Locker) walk(ctx context.Context, f func(*conn) error) error {
	var worst error
	for _, at := range l.servers.order() {
		c, err := dial(ctx, at, &l.opts)
		if err == nil {
			if err = f(c); !errors.Is(err, errAgain) {
				l.servers.promote(at)
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if worst == nil || !isNoLeader(worst) {
			worst = err
		}
	}
	return worst
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
