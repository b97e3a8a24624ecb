package cluster

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// grant is a hold as its client knows it: from the moment it was told until it
// asked for the release or was told of the loss.
type grant struct {
	fence   fsm.Fence
	ticket  fsm.Ticket // of the wait that it ended, if known
	who     string
	locks   []string
	mode    fsm.Mode
	slots   uint32
	limit   time.Duration
	asked   time.Time // when it was asked for first
	held    bool
	mayLose string // why it may end unasked; empty if it may not
	lost    bool
	leaving bool // its release has been asked for
	suspect []string
}

// checker compares what clients are told with what a lock service may say.
type checker struct {
	t     *testing.T
	seed  uint64
	stop  chan struct{} // closed at the first error
	mu    sync.Mutex
	by    map[fsm.Fence]*grant
	list  []*grant
	bad   int
	away  map[fsm.Ticket][]awaySpan
	ended map[string]fsm.Fence // by lock: the highest exclusive fence whose release was asked for
	count map[string]int
}

func newChecker(t *testing.T, seed uint64) *checker {
	return &checker{
		t: t, seed: seed, stop: make(chan struct{}),
		by: make(map[fsm.Fence]*grant), away: make(map[fsm.Ticket][]awaySpan), ended: make(map[string]fsm.Fence), count: make(map[string]int),
	}
}

// awaySpan says that a place was passed over behind the fence from, until the fence to.
type awaySpan struct{ from, to fsm.Fence }

// watch follows the events of a node, until it ends, for who may be passed.
func (c *checker) watch(events <-chan fsm.Event) {
	last, open := fsm.Fence(0), make(map[fsm.Ticket]int)
	for e := range events {
		c.mu.Lock()
		switch e.Kind {
		case fsm.EventGranted:
			last = e.Fence
		case fsm.EventAway:
			open[e.Ticket] = len(c.away[e.Ticket])
			c.away[e.Ticket] = append(c.away[e.Ticket], awaySpan{from: last, to: math.MaxUint64})
		case fsm.EventBack:
			if i, ok := open[e.Ticket]; ok {
				c.away[e.Ticket][i].to = last
				delete(open, e.Ticket)
			}
		}
		c.mu.Unlock()
	}
}

// passed reports whether a ticket was away when a later one was granted.
func (c *checker) passed(t fsm.Ticket, f fsm.Fence) bool {
	return slices.ContainsFunc(c.away[t], func(s awaySpan) bool { return f > s.from && f <= s.to })
}

func (c *checker) errorf(format string, args ...any) {
	c.bad++
	if c.bad == 1 {
		close(c.stop)
	}
	if c.bad < 8 {
		c.t.Errorf("seed %d: "+format, append([]any{c.seed}, args...)...)
	}
}

func (c *checker) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errorf(format, args...)
}

func (c *checker) tally(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[what]++
}

func overlap(a, b *grant) string {
	for _, name := range a.locks {
		if slices.Contains(b.locks, name) {
			return name
		}
	}
	return ""
}

// told notes that a client has been told of a grant, and returns it. The same
// grant may be told again, to a later request of the same claimant.
func (c *checker) told(who string, a fsm.Acquire, asked time.Time, fence fsm.Fence, ticket fsm.Ticket, locks []string) *grant {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count["granted"]++
	if g := c.by[fence]; g != nil {
		if g.who != who || !slices.Equal(g.locks, locks) {
			c.errorf("fence %d told to %s for %v and to %s for %v", fence, g.who, g.locks, who, locks)
		}
		g.held = !g.leaving && !g.lost // the news of an earlier request may be late
		return g
	}
	g := &grant{
		fence: fence, ticket: ticket, who: who, locks: locks, mode: a.Mode, slots: a.Slots,
		limit: time.Duration(a.Limit) * time.Millisecond, asked: asked, held: true,
	}
	if fence == 0 || len(locks) == 0 || a.Choice == fsm.All && len(locks) != len(a.Locks) || a.Choice == fsm.Any && len(locks) != 1 {
		c.errorf("%s: granted %v with fence %d for %+v", who, locks, fence, a)
	}
	if a.Limit != 0 {
		g.mayLose = "limit"
	}
	for _, l := range locks {
		if !slices.Contains(a.Locks, l) {
			c.errorf("%s: granted %s, asked for %v", who, l, a.Locks)
		}
		if last := c.ended[l]; last > fence && a.Mode == fsm.Exclusive {
			g.suspect = append(g.suspect, fmt.Sprintf("told after the release of %d of %s", last, l))
		}
	}
	sharers := make(map[string]int)
	for _, h := range c.list {
		l := ""
		if h.held {
			l = overlap(h, g)
		}
		if l == "" {
			continue
		}
		if h.mode == g.mode && g.mode == fsm.Shared {
			continue
		}
		if h.mode == g.mode && g.mode == fsm.Slots && h.slots == g.slots {
			if sharers[l]++; sharers[l] < int(g.slots) {
				continue
			}
		}
		// One of them has ended unasked, or it should not be.
		older, newer := h, g
		if g.fence < h.fence {
			older, newer = g, h
		}
		older.suspect = append(older.suspect, fmt.Sprintf("%s told of fence %d of %s", newer.who, newer.fence, l))
	}
	c.by[fence] = g
	c.list = append(c.list, g)
	return g
}

// releasing notes that a client is about to ask for the end of its hold.
func (c *checker) releasing(g *grant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.held, g.leaving = false, true
	if g.mode == fsm.Exclusive {
		for _, l := range g.locks {
			c.ended[l] = max(c.ended[l], g.fence)
		}
	}
}

// released notes the answer: was says whether the hold was still there.
func (c *checker) released(g *grant, was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.held = false
	switch {
	case !was && !g.lost:
		c.lose(g, "was gone when its owner released it")
	case was && len(g.suspect) > 0 && g.mode == fsm.Exclusive:
		c.errorf("%s held fence %d of %v until it released it, but %v", g.who, g.fence, g.locks, g.suspect)
	}
}

// losing notes that a hold may end unasked from now on.
func (c *checker) losing(g *grant, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.mayLose == "" {
		g.mayLose = why
	}
}

// lostTo notes that a client was told of the loss of its hold.
func (c *checker) lostTo(g *grant, e fsm.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count["lost: "+e.Cause.String()]++
	// Times are in whole milliseconds.
	if e.Cause == fsm.CauseLimit && time.Since(g.asked) < g.limit-time.Millisecond {
		c.errorf("%s: limit of %v fired %v after the request", g.who, g.limit, time.Since(g.asked))
	}
	if g.leaving && e.Cause == fsm.CauseNone {
		return // its node, which missed the release, sees that it is gone
	}
	c.lose(g, fmt.Sprintf("told of its loss: %v %v", e.Kind, e.Cause))
}

func (c *checker) lose(g *grant, how string) {
	g.held, g.lost = false, true
	if g.mayLose == "" {
		c.errorf("%s lost fence %d of %v for no reason: %s", g.who, g.fence, g.locks, how)
	}
}

// live picks a hold that nothing but its owner may end.
func (c *checker) live(skip int) *grant {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.list) - 1; i >= 0; i-- {
		if g := c.list[i]; g.held {
			if skip--; skip < 0 {
				return g
			}
		}
	}
	return nil
}

// firm reports whether g is held and nothing but its owner may end it.
func (c *checker) firm(g *grant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return g.held && g.mayLose == ""
}

// conclude checks what can be told only when everything has ended.
func (c *checker) conclude() {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := make(map[string][]*grant)
	slices.SortFunc(c.list, func(a, b *grant) int { return int(int64(a.fence) - int64(b.fence)) })
	for _, g := range c.list {
		if g.held {
			c.errorf("%s still holds fence %d of %v", g.who, g.fence, g.locks)
		}
		if len(g.suspect) > 0 && g.mayLose == "" {
			c.errorf("%s had fence %d of %v, which nothing but its owner could end, but %v", g.who, g.fence, g.locks, g.suspect)
		}
		if g.ticket == 0 || g.mode != fsm.Exclusive || len(g.locks) != 1 {
			continue
		}
		// Exclusive waiters of one lock get it in turn, while their nodes are in touch.
		for _, b := range before[g.locks[0]] {
			if b.ticket > g.ticket && !c.passed(g.ticket, b.fence) {
				c.errorf("%s: ticket %d granted as fence %d after ticket %d as %d", g.locks[0], g.ticket, g.fence, b.ticket, b.fence)
			} else if b.ticket > g.ticket {
				c.count["passed"]++
			}
		}
		before[g.locks[0]] = append(before[g.locks[0]], g)
	}
}
