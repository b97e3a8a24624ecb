package cluster

import (
	"slices"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// maxOpen bounds the commands on their way at once. Further ones wait their turn
// here. The table remembers more answers than this, so none is ever refused.
const maxOpen = 32 << 10

// rebound is how long a command that a peer would not take rests before it is
// tried again: about the time an election's winner needs to take office.
const rebound = 20 * time.Millisecond

// route is where commands go at present: this node's own office, or the link to
// the leader's node. It must not block and must not call back from propose.
type route interface {
	propose(p fsm.Proposal)
}

// call is a command on its way, from Submit to its answer.
type call struct {
	seq     uint64
	command fsm.Command
	claim   *Claim                            // of an Acquire or an attaching Renew
	finish  func(ask fsm.Ask, res fsm.Result) // called once, with only telling held; must not block
	again   bool                              // an earlier request may have had its effect
	sent    int                               // how many times
}

// ledger keeps every command this node has made until it is answered, and every
// claim until its end. It has two roles: to hand the unanswered commands to each
// new leader, in order and under the same numbers, and to find whom an event of
// the table concerns.
//
// Invariant: floor <= every open seq < next, and an answered command is in no map.
type ledger struct {
	name  string
	nonce [16]byte

	// telling is held while clients are told, so that they hear of answers and
	// events in order whichever way those came. It is taken before mu.
	telling sync.Mutex

	mu        sync.Mutex
	route     route
	routeless time.Time // since when there is no route; zero while there is one
	node      fsm.Incarnation
	past      fsm.Incarnation // the last one that is over
	next      uint64
	floor     uint64
	open      map[uint64]*call
	early     []*call // not numbered yet: the node has not joined, or too many are open
	claims    map[uint64]*Claim
	adrift    map[fsm.Ask]*Claim // of incarnations that are over, until the table says what is left of them
	lost      chan struct{}      // holds a token when claims have come adrift, and are to be reconciled
	resting   bool               // open commands are about to be sent again,
	restFor   route              // if this is still the route
}

func newLedger(name string) *ledger {
	l := &ledger{name: name, routeless: time.Now(), adrift: make(map[fsm.Ask]*Claim), lost: make(chan struct{}, 1)}
	l.reset()
	return l
}

// reset begins a new incarnation: nothing numbered, nothing claimed.
func (l *ledger) reset() {
	copy(l.nonce[:], newID())
	l.node, l.next, l.floor = 0, 1, 1
	l.open = make(map[uint64]*call)
	l.claims = make(map[uint64]*Claim)
}

// add takes a command over; it will be proposed until it is answered.
func (l *ledger) add(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.early = append(l.early, c)
	l.number()
}

// number gives numbers to commands that wait for one, and sends them.
func (l *ledger) number() {
	for len(l.early) > 0 && l.node != 0 && l.next-l.floor < maxOpen {
		c := l.early[0]
		l.early[0] = nil
		l.early = l.early[1:]
		if c.claim != nil && c.claim.ended && !c.again {
			continue // its client has gone before anyone was asked
		}
		c.seq = l.next
		l.next++
		l.open[c.seq] = c
		if c.claim != nil {
			c.claim.ask = fsm.Ask{Node: l.node, Seq: c.seq}
			if !c.claim.ended {
				l.claims[c.seq] = c.claim
			}
		}
		l.send(c)
	}
}

func (l *ledger) send(c *call) {
	if l.route != nil {
		c.sent++
		l.route.propose(fsm.Proposal{
			Ask:     fsm.Ask{Node: l.node, Seq: c.seq},
			Floor:   l.floor,
			Command: c.command,
		})
	}
}

func (l *ledger) sendJoin() {
	if l.route != nil {
		l.route.propose(fsm.Proposal{Command: fsm.NodeJoin{Name: l.name, Nonce: l.nonce}})
	}
}

// setRoute directs commands to a new leader, nil if there is none, and hands it
// all that the one before has not answered.
func (l *ledger) setRoute(r route) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r == nil && l.route != nil {
		l.routeless = time.Now()
	}
	if r != nil {
		l.routeless = time.Time{}
	}
	l.route = r
	l.resend()
}

func (l *ledger) resend() {
	if l.route == nil {
		return
	}
	if l.node == 0 {
		l.sendJoin()
		return
	}
	for _, seq := range l.openSeqs() {
		l.send(l.open[seq])
	}
}

func (l *ledger) openSeqs() []uint64 {
	seqs := make([]uint64, 0, len(l.open))
	for seq := range l.open {
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	return seqs
}

// bounce notes that the route would not take a command. All open ones are sent
// again after a rest, unless the route has changed by then and did so already.
func (l *ledger) bounce(from route) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.route == from {
		l.rest()
	}
}

func (l *ledger) rest() {
	from := l.route
	if l.resting && l.restFor == from {
		return
	}
	l.resting, l.restFor = true, from
	time.AfterFunc(rebound, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.restFor == from {
			l.resting = false
		}
		if l.route == from {
			l.resend()
		}
	})
}

// answer takes the result of a command. A second answer to the same command, or
// one to an incarnation that is over, has no one to go to.
func (l *ledger) answer(ask fsm.Ask, res fsm.Result) {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	if ask == (fsm.Ask{}) {
		l.joined(res)
		l.mu.Unlock()
		return
	}
	c := l.open[ask.Seq]
	if ask.Node != l.node || c == nil {
		l.mu.Unlock()
		return
	}
	switch {
	case res.Code == fsm.Stranger:
		l.rejoin()
		l.mu.Unlock()
		return
	case res.Code == fsm.Stale:
		// The table takes an open command for answered: only a bug here could make
		// it so. Under a new number it is at least not lost.
		c.again = true
		l.renumber(c)
		l.mu.Unlock()
		return
	case res.Code == fsm.Done && c.acquires():
		// The answer to a repeated request that was granted or queued before, and is
		// over. No one here has been told of that yet.
		var again bool
		if res, again = c.claim.over(); again {
			l.renumber(c)
			l.mu.Unlock()
			return
		}
	}
	l.close(c)
	finish := c.finish
	var news []fsm.Event
	if c.claim != nil {
		if c.claim.ended {
			finish = nil // nobody waits for it
		}
		l.settle(c, res)
		news = l.catchUp(c.claim)
	}
	l.number()
	l.mu.Unlock()
	if finish != nil {
		finish(ask, res)
	}
	for _, e := range news {
		c.claim.notify(e)
	}
}

// acquires reports whether a request for locks is made for somebody.
func (c *call) acquires() bool {
	_, ok := c.command.(fsm.Acquire)
	return ok && !c.claim.ended
}

// unsure reports whether nobody can tell what a result means: the hold that was to be
// ended is over, and may have been ended by this command, asked for before under an
// incarnation whose answers have gone with it, or by something else before that.
func (c *call) unsure(res fsm.Result) bool {
	switch c.command.(type) {
	case fsm.Release, fsm.Break:
		return res.Code == fsm.NotHeld && c.again
	}
	return false
}

// close takes a command off the open ones.
func (l *ledger) close(c *call) {
	delete(l.open, c.seq)
	for l.floor < l.next && l.open[l.floor] == nil {
		l.floor++
	}
}

// renumber makes an open command a new request.
func (l *ledger) renumber(c *call) {
	l.close(c)
	delete(l.claims, c.seq)
	c.claim.forgetNews()
	l.early = append(l.early, c)
	l.number()
}

// joined takes the answer to a request to join. One to an earlier such request may come
// again, by another leader, when what it says is over.
func (l *ledger) joined(res fsm.Result) {
	if l.node != 0 || res.Node != 0 && res.Node <= l.past {
		return
	}
	if res.Node == 0 {
		l.rest() // refused: there may be room for one more later
		return
	}
	l.node = res.Node
	l.number()
}

// givenUp notes that the cluster has given an incarnation up. A node that is idle would
// hear of that only when it is too late for its next client to be served at once.
func (l *ledger) givenUp(inc fsm.Incarnation) {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if inc != 0 && inc == l.node {
		l.rejoin()
	}
}

// rejoin begins a new incarnation because the cluster has given the present one
// up: it had not heard of this node for too long, and has withdrawn the waits that
// came in by it. Whatever is open is asked again. Clients that wait or hold may
// have moved to other nodes meanwhile, so the table is looked at first.
func (l *ledger) rejoin() {
	again := make([]*call, 0, len(l.open)+len(l.early))
	for _, seq := range l.openSeqs() {
		c := l.open[seq]
		if c.claim != nil {
			delete(l.claims, seq)
			if c.claim.ended && !c.claim.cancelled {
				continue // only its news was wanted
			}
			c.again = true
			c.claim.forgetNews()
		} else if c.sent > 0 {
			c.again = true
		}
		again = append(again, c)
	}
	l.early = append(again, l.early...)
	for _, c := range l.claims {
		l.adrift[c.ask] = c
	}
	l.past = l.node
	l.reset()
	l.sendJoin()
	select {
	case l.lost <- struct{}{}:
	default:
	}
}

// leaderless reports how long there has been no leader to send to.
func (l *ledger) leaderless() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.routeless.IsZero() {
		return 0
	}
	return time.Since(l.routeless)
}

func (l *ledger) incarnation() fsm.Incarnation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.node
}
