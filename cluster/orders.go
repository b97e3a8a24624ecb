package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// maxOver is how many orders a node remembers to be done with, so that a late word
// cannot have it begin one of them again.
const maxOver = 4096

// maxWords bounds what a node may ask about at once: more than can be open.
const maxWords = 16 * fsm.MaxOpenOrders

// orders are this node's duties: its parts of the orders in the table.
//
// What is to be done is told by whoever learns of it first: the leader, which sends it
// to every node that has a part, and sends it again each second until that has reported
// it done, or a server's own log. An order's state only rises, so a word that is late or
// comes twice does no harm. While there are duties, the node asks the leader about them,
// which tells it what it has missed, and that it is in touch: if that is not so for
// Config.OrderGrace, it thaws, for then the leader may have told the others to.
type orders struct {
	node *Node

	mu       sync.Mutex
	duties   map[fsm.OrderID]*duty
	over     []fsm.OrderID // done with, rising
	stopping bool
	idle     chan struct{} // closed when stopping, and no duty is left
	touch    time.Time     // when the leader was asked what it has answered last
	met      chan struct{} // closed when it has answered, since there are duties
	watching bool

	told chan struct{} // closed and replaced when this node has heard of an order
}

func newOrders(n *Node) *orders {
	return &orders{node: n, duties: make(map[fsm.OrderID]*duty), idle: make(chan struct{}), told: make(chan struct{})}
}

// note follows the events of orders.
func (s *orders) note(events []fsm.Event) {
	some := false
	for _, e := range events {
		if e.OfOrder() {
			s.learn(e.Order)
			some = true
		}
	}
	if some {
		s.tell()
	}
}

// tell wakes those who follow orders.
func (s *orders) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.told)
	s.told = make(chan struct{})
}

func (s *orders) heard() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// learn takes in how an order stands.
func (s *orders) learn(o *fsm.Order) {
	inc := s.node.ledger.incarnation()
	if inc == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.duties[o.ID]; d != nil {
		d.learn(o.State, o)
		return
	}
	p := o.Part(inc)
	if p == nil || p.State >= fsm.PartFailed || o.State == fsm.OrderClosed {
		return
	}
	if _, done := slices.BinarySearch(s.over, o.ID); done {
		return
	}
	d := newDuty(s, o, inc)
	s.duties[o.ID] = d
	d.learn(o.State, o)
	if s.stopping {
		d.end(fsm.ThawStopping)
	}
	if !s.watching {
		s.watching, s.touch, s.met = true, time.Now(), make(chan struct{})
		s.node.run(s.watch)
	}
	s.node.run(d.run)
	s.node.run(d.report)
}

// done is told by a duty that the table has its last report, or never will.
func (s *orders) done(d *duty) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.duties, d.order)
	if i, found := slices.BinarySearch(s.over, d.order); !found {
		s.over = slices.Insert(s.over, i, d.order)
	}
	if len(s.over) > maxOver {
		s.over = s.over[len(s.over)-maxOver:]
	}
	s.rest()
}

func (s *orders) rest() {
	if s.stopping && len(s.duties) == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

// stop thaws all that is held and waits until the table knows, or ctx ends.
func (s *orders) stop(ctx context.Context) {
	s.mu.Lock()
	s.stopping = true
	for _, d := range s.duties {
		d.end(fsm.ThawStopping)
	}
	s.rest()
	s.mu.Unlock()
	select {
	case <-s.idle:
	case <-ctx.Done():
	case <-s.node.ctx.Done():
	}
}

// word is what a node asks the leader about a duty, and the state that it is told.
type word struct {
	Order fsm.OrderID     `json:"order"`
	Node  fsm.Incarnation `json:"node"`
	State fsm.OrderState  `json:"state"`
}

func (s *orders) words() []word {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]word, 0, len(s.duties))
	for id, d := range s.duties {
		list = append(list, word{Order: id, Node: d.inc})
	}
	if len(list) == 0 {
		s.watching = false
	}
	return list
}

// watch keeps in touch with the leader while there are duties.
func (s *orders) watch() {
	grace := s.node.cfg.OrderGrace
	for s.node.ctx.Err() == nil {
		list := s.words()
		if len(list) == 0 {
			return
		}
		asked := time.Now()
		last := s.lastTouch()
		ctx, cancel := context.WithDeadline(s.node.ctx, earlier(asked.Add(grace/2), last.Add(grace)))
		changed := s.node.leaderChanged()
		err := s.node.askOrders(ctx, list)
		cancel()
		rest := grace / 4
		if err == nil {
			s.touched(asked, list)
			s.renew(asked)
		} else {
			left := time.Until(last.Add(grace))
			if left <= 0 {
				s.outOfTouch()
			} else {
				rest = min(rebound, left)
			}
		}
		t := time.NewTimer(rest)
		select {
		case <-t.C:
		case <-changed:
		case <-s.node.ctx.Done():
		}
		t.Stop()
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (s *orders) lastTouch() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.touch
}

// touched takes in the leader's answer to a question asked at a time.
func (s *orders) touched(asked time.Time, list []word) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touch = asked
	select {
	case <-s.met:
	default:
		close(s.met)
	}
	for _, w := range list {
		if d := s.duties[w.Order]; d != nil {
			d.learn(w.State, nil)
		}
	}
}

// outOfTouch thaws everything. For what comes next, the grace begins anew, and the
// leader has to be met first.
func (s *orders) outOfTouch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.duties {
		d.end(fsm.ThawQuorum)
	}
	s.touch, s.met = time.Now(), make(chan struct{})
}

// inTouch is closed once the leader has been met.
func (s *orders) inTouch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.met
}

// askOrders asks the leader, which may be this node, how the orders of list stand. An
// answer proves that it led by a quorum's word after it was asked.
func (n *Node) askOrders(ctx context.Context, list []word) error {
	if n.office.Load() != nil {
		return n.standings(ctx, list)
	}
	l := n.leaderLink()
	if l == nil {
		return ErrNoLeader
	}
	b, err := l.ask(ctx, askOrders, mustJSON(list))
	if err != nil {
		return err
	}
	var got []word
	if err := json.Unmarshal(b, &got); err != nil || len(got) != len(list) {
		return errPeerGarbage
	}
	for i := range list {
		list[i].State = got[i].State
	}
	return nil
}

// standings fills in how orders stand, as the leader. One that is closed, forgotten or
// without the node is over for it.
func (n *Node) standings(ctx context.Context, list []word) error {
	if len(list) > maxWords {
		return fmt.Errorf("%w: %d orders of one node", errPeerGarbage, len(list))
	}
	r, err := n.ownReadIndex(ctx)
	if err == nil {
		err = n.replica.waitFor(ctx, r.index)
	}
	if err != nil {
		return err
	}
	if o := n.office.Load(); o != nil {
		o.askers.asked(list)
	}
	n.replica.view(func(m *fsm.Machine) {
		for i, w := range list {
			list[i].State = fsm.OrderClosed
			if o := m.Order(w.Order); o != nil {
				if p := o.Part(w.Node); p != nil && p.State < fsm.PartFailed {
					list[i].State = o.State
				}
			}
		}
	})
	return nil
}

// remind tells the nodes in touch, as the leader, what they have to do and have not
// reported done. Words may be lost with connections and leaders.
func (n *Node) remind() {
	var open []*fsm.Order
	n.replica.view(func(m *fsm.Machine) { open, _ = m.Orders() })
	own := n.ledger.incarnation()
	for _, o := range open {
		kind, waits := pendingOf(o.State)
		for _, p := range o.Parts {
			switch {
			case !waits(p.State):
			case p.Node == own:
				n.orders.learn(o)
			default:
				n.peers.order(kind, o, p)
			}
		}
	}
}

// pendingOf is the event by which an order has come into its state, and whether a node
// has something to do in it that it has not reported yet.
func pendingOf(s fsm.OrderState) (kind fsm.EventKind, waits func(fsm.PartState) bool) {
	switch s {
	case fsm.OrderPreparing:
		return fsm.EventOrderOpened, func(p fsm.PartState) bool { return p == fsm.PartPreparing }
	case fsm.OrderFreezing:
		return fsm.EventOrderFreezing, func(p fsm.PartState) bool { return p == fsm.PartReady }
	case fsm.OrderThawing:
		return fsm.EventOrderEnded, func(p fsm.PartState) bool { return p < fsm.PartFailed }
	}
	return fsm.EventOrderFrozen, func(fsm.PartState) bool { return false }
}

// order sends an order to the node of one of its parts, if it is in touch.
func (ps *peers) order(kind fsm.EventKind, o *fsm.Order, part *fsm.OrderPart) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.sendOrder(kind, o, part)
}

func (ps *peers) sendOrder(kind fsm.EventKind, o *fsm.Order, part *fsm.OrderPart) {
	if p := ps.by[part.Node]; p != nil {
		own := *o
		own.Parts = []*fsm.OrderPart{part}
		p.out.send(frameOrders, fsm.AppendEvent(nil, fsm.Event{Kind: kind, By: o.By, Order: &own}))
	}
}

var errExecutorsOff = errors.New("executors are off")
