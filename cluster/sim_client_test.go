package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// simRequest is one Acquire or Attach and all that its client is told of it.
type simRequest struct {
	client *simClient
	node   *simNode
	a      fsm.Acquire
	who    string
	asked  time.Time
	claim  *Claim
	poke   chan struct{} // holds a token after news

	mu      sync.Mutex
	quiet   bool // the client listens no more
	granted bool
	ended   bool
	waiting bool
	last    fsm.Event
	g       *grant
}

// notify checks the order of news: a grant at most once, and then at most one end.
func (r *simRequest) notify(e fsm.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.quiet {
		return
	}
	chk := r.client.chaos.check
	if r.ended {
		chk.fail("%s by %s: told %v %v after its end by %v %v", r.who, r.node.Name(), e.Kind, e.Cause, r.last.Kind, r.last.Cause)
	}
	switch e.Kind {
	case fsm.EventGranted:
		if r.granted {
			chk.fail("%s by %s: granted twice, now fence %d", r.who, r.node.Name(), e.Fence)
		}
		r.granted, r.waiting = true, false
		r.g = chk.told(r.who, r.a, r.asked, e.Fence, e.Ticket, e.Locks)
	case fsm.EventWithdrawn:
		if r.granted {
			chk.fail("%s by %s: withdrawn after its grant", r.who, r.node.Name())
		}
		r.ended = true
	case fsm.EventSuperseded:
		r.ended = true
	case fsm.EventReleased:
		r.ended = true
		if r.g != nil {
			chk.lostTo(r.g, e)
		}
	default:
		chk.fail("%s: told %v", r.who, e.Kind)
	}
	r.last = e
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// answered takes the answer to an Acquire.
func (r *simRequest) answered(res fsm.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	chk := r.client.chaos.check
	switch res.Code {
	case fsm.Granted:
		if r.granted && r.g.fence != res.Fence {
			chk.fail("%s by %s: told of fence %d, answered %d", r.who, r.node.Name(), r.g.fence, res.Fence)
		}
		if r.ended && r.last.Kind == fsm.EventSuperseded {
			return
		}
		if !r.granted {
			r.granted = true
			r.g = chk.told(r.who, r.a, r.asked, res.Fence, 0, res.Locks)
			if r.ended {
				chk.lostTo(r.g, r.last)
			}
		}
	case fsm.Queued:
		if !r.a.Block {
			chk.fail("%s by %s: queued without being asked to", r.who, r.node.Name())
		}
		r.waiting = !r.granted && !r.ended
	case fsm.Busy, fsm.Refused:
		if r.granted || r.ended {
			chk.fail("%s by %s: told %v, answered %v", r.who, r.node.Name(), r.last.Kind, res.Code)
		}
		if res.Code == fsm.Busy && r.a.Block || res.Code == fsm.Refused && r.a.Mode != fsm.Slots {
			chk.fail("%s by %s: %v %q for %+v", r.who, r.node.Name(), res.Code, res.Reason, r.a)
		}
		r.ended = true
	default:
		chk.fail("%s by %s: %v for an Acquire, after %v %v", r.who, r.node.Name(), res.Code, r.last.Kind, r.last.Cause)
		r.ended = true
	}
}

// hush ends the client's interest, as the end of its connection would.
func (r *simRequest) hush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quiet = true
}

func (r *simRequest) state() (g *grant, waiting, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.g, r.waiting, r.ended
}

// end is the news that ended the request, if any has.
func (r *simRequest) end() fsm.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		return fsm.Event{}
	}
	return r.last
}

// simClient makes one request after the other, under one name or several.
type simClient struct {
	chaos *chaos
	rng   *rand.Rand
	name  string
	gen   int           // of the name: a name with a request of unknown outcome is not used again
	risky bool          // more than one request of this name was made
	old   []*simRequest // connections from which the client has moved on, but not hung up
	shaky bool          // and one of unknown outcome is undone by its node, whenever that can
}

func (c *simClient) run(ctx context.Context) {
	for ctx.Err() == nil && !c.chaos.stopping() {
		c.once(ctx)
		time.Sleep(time.Duration(c.rng.IntN(200)) * time.Millisecond)
	}
}

func (c *simClient) request() fsm.Acquire {
	names := []string{"a", "b", "c", "d"}
	a := fsm.Acquire{Owner: fmt.Sprintf("%s.%d", c.name, c.gen), Block: c.rng.IntN(4) > 0}
	if c.rng.IntN(2) == 0 {
		for i := range a.ID {
			a.ID[i] = byte(c.rng.Uint32())
		}
	}
	c.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	a.Locks = names[:1]
	switch c.rng.IntN(10) {
	case 0:
		a.Locks, a.Choice = names[:2], fsm.All
	case 1:
		a.Locks = names[:3]
	case 2, 3:
		a.Mode = fsm.Shared
	case 4:
		a.Locks, a.Mode, a.Slots = []string{"s"}, fsm.Slots, 2
	case 5:
		a.Limit = fsm.Millis(500 + c.rng.IntN(3000))
	}
	return a
}

// ask makes a request through one node. On error the client knows nothing.
func (c *simClient) ask(ctx context.Context, n *simNode, a fsm.Acquire, asked time.Time, patience time.Duration) (*simRequest, error) {
	r := &simRequest{
		client: c, node: n, a: a, who: fmt.Sprintf("%s/%x", a.Owner, a.ID[:2]),
		asked: asked, poke: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	claim, res, err := n.Acquire(ctx, a, r.notify)
	if err != nil {
		r.hush()
		c.chaos.check.tally("unknown outcome")
		return nil, err
	}
	r.claim = claim
	c.chaos.opened(r)
	c.chaos.check.tally(res.Code.String())
	r.answered(res)
	return r, nil
}

// insist asks through one node after the other.
func (c *simClient) insist(ctx context.Context, a fsm.Acquire, asked time.Time) *simRequest {
	for ctx.Err() == nil {
		n := c.chaos.pick(c.rng)
		r, err := c.ask(ctx, n, a, asked, time.Hour)
		if err == nil {
			return r
		}
		c.risky, c.shaky = true, true
		time.Sleep(time.Duration(c.rng.IntN(500)) * time.Millisecond)
	}
	return nil
}

func (c *simClient) once(ctx context.Context) {
	if c.risky {
		c.gen++
		c.risky, c.shaky = false, false
	}
	patience := 5 * time.Minute
	if c.rng.IntN(6) == 0 {
		patience = time.Duration(c.rng.IntN(3000)) * time.Millisecond
	}
	a := c.request()
	n := c.chaos.pick(c.rng)
	r, err := c.ask(ctx, n, a, time.Now(), patience)
	if err != nil {
		c.risky = true
		c.chaos.abandoned(n, fsm.Release{Owner: a.Owner, ID: a.ID, Locks: a.Locks})
		return
	}
	if r = c.await(ctx, r); r != nil {
		c.keep(ctx, r)
	}
	for _, old := range c.old {
		c.hangUp(old)
	}
	c.old = nil
}

// await sees a request through to its grant; nil if there will be none.
func (c *simClient) await(ctx context.Context, r *simRequest) *simRequest {
	var giveUp, again <-chan time.Time
	switch c.rng.IntN(6) {
	case 0:
		giveUp = time.After(time.Duration(c.rng.IntN(2000)) * time.Millisecond)
	case 1:
		again = time.After(time.Duration(c.rng.IntN(2000)) * time.Millisecond)
	}
	for {
		g, waiting, ended := r.state()
		end := r.end()
		if end.Kind == fsm.EventSuperseded {
			if !c.risky {
				c.chaos.check.fail("%s by %s: superseded by nobody", r.who, r.node.Name())
			}
			old := r
			if r = c.insist(ctx, r.a, r.asked); r == nil {
				return nil
			}
			old.hush()
			continue
		}
		if g != nil {
			return r
		}
		if !waiting || ended {
			if end.Kind == fsm.EventWithdrawn {
				c.chaos.check.fail("%s by %s: withdrawn for %v", r.who, r.node.Name(), end.Cause)
			}
			return nil
		}
		select {
		case <-r.poke:
		case <-giveUp:
			c.giveUp(ctx, r)
			return nil
		case <-again:
			again = nil
			c.risky = true
			c.chaos.check.tally("asked again")
			old := r
			old.hush()
			if r = c.insist(ctx, r.a, r.asked); r == nil {
				return nil
			}
			c.old = append(c.old, old)
			if c.rng.IntN(2) == 0 {
				old.claim.Cancel()
			}
		case <-r.node.dead:
			c.risky = true
			r.hush()
			c.chaos.check.tally("node died under a wait")
			// What its node was told before it died counts.
			if r = c.insist(ctx, r.a, r.asked); r == nil {
				return nil
			}
		case <-ctx.Done():
			c.chaos.check.fail("%s by %s waits for ever: %s", r.who, r.node.Name(), c.chaos.describe(r))
			return nil
		}
	}
}

// giveUp ends a wait, in one of the ways in which clients do.
func (c *simClient) giveUp(ctx context.Context, r *simRequest) {
	if g, _, _ := r.state(); g != nil {
		c.chaos.check.releasing(g)
	}
	r.hush()
	if g, _, _ := r.state(); g != nil {
		c.chaos.check.releasing(g)
	}
	release := fsm.Release{Owner: r.a.Owner, ID: r.a.ID, Locks: r.a.Locks}
	if c.rng.IntN(2) == 0 {
		c.release(ctx, release)
		c.chaos.check.tally("waits released")
	}
	c.cancel(r, release)
	c.chaos.check.tally("cancelled")
}

// hangUp ends a connection that another has taken over from.
func (c *simClient) hangUp(r *simRequest) {
	r.hush()
	c.cancel(r, fsm.Release{Owner: r.a.Owner, ID: r.a.ID, Locks: r.a.Locks})
}

// cancel leaves it to the node to see that nothing remains, which takes its time.
func (c *simClient) cancel(r *simRequest, release fsm.Release) {
	c.risky = true
	c.chaos.abandoned(r.node, release)
	r.claim.Cancel()
}

// release sees a Release through; sure is false if an earlier try may have done it.
func (c *simClient) release(ctx context.Context, rel fsm.Release) (res fsm.Result, sure bool) {
	sure = true
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 20*time.Second)
		res, err := c.chaos.pick(c.rng).Submit(try, rel)
		cancel()
		if err == nil {
			return res, sure
		}
		if errors.Is(err, errUnsure) {
			c.chaos.check.tally("unsure")
		}
		sure = false
		c.risky = true
		time.Sleep(time.Duration(c.rng.IntN(500)) * time.Millisecond)
	}
	return res, false
}

// keep holds for a while and releases.
func (c *simClient) keep(ctx context.Context, r *simRequest) {
	g, _, _ := r.state()
	chk := c.chaos.check
	busy := time.After(time.Duration(c.rng.IntN(400)) * time.Millisecond)
	if g.limit > 0 && c.rng.IntN(2) == 0 {
		busy = time.After(g.limit + 10*time.Second) // until it is lost
	}
	if c.shaky {
		chk.losing(g, "an earlier request was undone")
	}
	if c.rng.IntN(5) == 0 {
		c.look(ctx, g)
	}
	attached := false
	if c.rng.IntN(6) == 0 {
		r, attached = c.attach(ctx, r, g)
		if r == nil {
			return
		}
	}
	for over := false; !over; {
		select {
		case <-busy:
			over = true
		case <-r.poke:
			_, _, ended := r.state()
			over = ended
		}
	}
	chk.releasing(g)
	if !attached && c.rng.IntN(6) == 0 {
		r.hush()
		c.cancel(r, fsm.Release{Fence: g.fence})
		return
	}
	if c.rng.IntN(6) == 0 {
		c.release(ctx, fsm.Release{Owner: r.a.Owner, ID: r.a.ID, Locks: r.a.Locks})
	} else if res, sure := c.release(ctx, fsm.Release{Fence: g.fence}); sure {
		chk.released(g, res.Code == fsm.Done)
	}
	r.hush()
	if c.rng.IntN(2) == 0 {
		r.claim.Forget()
	}
}

// look reads what the cluster says of a hold.
func (c *simClient) look(ctx context.Context, g *grant) {
	if !c.chaos.check.firm(g) || c.risky {
		return
	}
	try, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	n := c.chaos.pick(c.rng)
	owner := fmt.Sprintf("%s.%d", c.name, c.gen)
	res, err := n.Status(try, owner, g.locks)
	if err == nil && c.chaos.check.firm(g) && (res.Code != fsm.Granted || res.Fence != g.fence) {
		c.chaos.check.fail("%s holds fence %d of %v; %s says %+v", owner, g.fence, g.locks, n.Name(), res)
	}
	c.chaos.check.tally("reads")
}

// attach has another connection follow the hold.
func (c *simClient) attach(ctx context.Context, r *simRequest, g *grant) (*simRequest, bool) {
	n := c.chaos.pick(c.rng)
	to := &simRequest{
		client: c, node: n, a: r.a, who: r.who, asked: r.asked, poke: make(chan struct{}, 1),
		granted: true, g: g,
	}
	try, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	claim, res, err := n.Attach(try, r.a.Owner, g.fence, to.notify)
	switch {
	case err != nil:
		to.hush()
		return r, true // it may have happened; nobody may hear of the end now
	case res.Code == fsm.Done:
		c.chaos.check.tally("attached")
		to.claim = claim
		c.chaos.opened(to)
		return to, true
	case res.Code != fsm.NotHeld:
		c.chaos.check.fail("%s: attach: %+v", r.who, res)
	}
	c.chaos.check.releasing(g)
	c.chaos.check.released(g, false)
	r.hush()
	return nil, false
}
