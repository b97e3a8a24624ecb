package cluster

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// thawAgain is how long a thaw that has failed rests before it is tried again.
const thawAgain = time.Second

// duty is this node's part of one order. Two goroutines serve it: run carries it out,
// and report tells the table, so that a thaw never waits for the cluster.
type duty struct {
	orders *orders
	order  fsm.OrderID
	inc    fsm.Incarnation
	task   Task

	ctx    context.Context // ends with the order
	cancel context.CancelFunc
	freeze chan struct{} // closed when all nodes are ready
	over   chan struct{} // closed when it is to be undone
	past   chan struct{} // closed when it is prepared, or never will be
	tried  chan struct{} // closed when it is frozen, or never will be

	// Guarded by orders.mu.
	cause  fsm.ThawCause // of over
	reason string        // why the order has ended, as far as it is known
	leased Prepared      // whose guard waits for renewals; nil for none

	mu   sync.Mutex
	next *fsm.OrderReport // what the table is to know; later ones say all that earlier ones do
	wake chan struct{}
}

func newDuty(s *orders, o *fsm.Order, inc fsm.Incarnation) *duty {
	d := &duty{
		orders: s, order: o.ID, inc: inc,
		task: Task{
			Order: uint64(o.ID), Action: o.Action, Spec: o.Spec, By: o.By, Locks: &TaskLocks{node: s.node, by: o.By},
			Timeout: timeoutOf(o.Timeout), Lease: leasePerGrace * s.node.cfg.OrderGrace,
		},
		freeze: make(chan struct{}), over: make(chan struct{}), past: make(chan struct{}), tried: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	d.ctx, d.cancel = context.WithCancel(s.node.ctx)
	return d
}

// leasePerGrace is how many times Config.OrderGrace a guard goes without a renewal. The
// node thaws after one by itself, so what makes the guard do it is a node that hangs.
const leasePerGrace = 2

// renew tells the guards that the leader has been met by a question asked at a time. An
// answer that has lain here for longer than the grace, as when this process was
// stopped, says nothing about now.
func (s *orders) renew(asked time.Time) {
	if time.Since(asked) > s.node.cfg.OrderGrace {
		return
	}
	var leased []Prepared
	s.mu.Lock()
	for _, d := range s.duties {
		if d.leased != nil {
			leased = append(leased, d.leased)
		}
	}
	s.mu.Unlock()
	for _, p := range leased {
		p.Renew()
	}
}

// lease has renewals go to what the duty has prepared.
func (d *duty) lease(prepared Prepared) {
	d.orders.mu.Lock()
	defer d.orders.mu.Unlock()
	d.leased = prepared
}

// timeoutOf is the time after which the node's guard thaws.
func timeoutOf(t fsm.Millis) time.Duration {
	if t == 0 {
		return -1
	}
	return time.Duration(min(t, math.MaxInt64/fsm.Millis(time.Millisecond))) * time.Millisecond
}

// learn takes in the state of the order; o may be nil. orders.mu is held.
func (d *duty) learn(s fsm.OrderState, o *fsm.Order) {
	if s >= fsm.OrderThawing {
		if o != nil && d.reason == "" {
			d.reason = reasonText(o)
		}
		d.end(fsm.ThawAsked)
		return
	}
	if s >= fsm.OrderFreezing {
		select {
		case <-d.freeze:
		default:
			close(d.freeze)
		}
	}
}

// end has it undone. orders.mu is held.
func (d *duty) end(cause fsm.ThawCause) {
	if d.cause == fsm.ThawNone {
		d.cause = cause
		close(d.over)
		d.cancel()
	}
}

// ended says why it is to be undone; ThawNone if it is not.
func (d *duty) ended() (fsm.ThawCause, string) {
	d.orders.mu.Lock()
	defer d.orders.mu.Unlock()
	if d.cause == fsm.ThawNone && d.orders.node.ctx.Err() != nil {
		return fsm.ThawStopping, ""
	}
	return d.cause, d.reason
}

// run carries it out, from the first word to the last report.
func (d *duty) run() {
	defer d.cancel()
	tried := sync.OnceFunc(func() { close(d.tried) })
	defer tried()
	n := d.orders.node
	log := n.log.With("order", d.order, "action", d.task.Action, "by", d.task.By)
	if cause, _ := d.ended(); cause != fsm.ThawNone {
		close(d.past)
		d.say(fsm.OrderReport{State: fsm.PartThawed, Cause: cause})
		return
	}
	d.awaitTurn()
	prepared, err := d.prepare()
	close(d.past)
	if err != nil {
		if cause, _ := d.ended(); cause != fsm.ThawNone {
			log.Info("order ended before it was prepared", "cause", cause)
			d.say(fsm.OrderReport{State: fsm.PartThawed, Cause: cause})
			return
		}
		log.Warn("order refused", "reason", err)
		d.say(fsm.OrderReport{State: fsm.PartFailed, Text: err.Error()})
		return
	}
	d.lease(prepared)
	d.say(fsm.OrderReport{State: fsm.PartReady})
	if d.awaitGo(prepared) {
		d.awaitEarlier()
		began := time.Now()
		text, err := prepared.Freeze(d.ctx)
		tried()
		if err != nil {
			d.undo(prepared) // nothing is frozen; the guard is to go
			if cause, _ := d.ended(); cause != fsm.ThawNone {
				log.Info("order ended before it was carried out", "cause", cause)
				d.say(fsm.OrderReport{State: fsm.PartThawed, Cause: cause})
				return
			}
			log.Warn("order failed", "error", err)
			d.say(fsm.OrderReport{State: fsm.PartFailed, Text: err.Error()})
			return
		}
		took := time.Since(began)
		log.Info("order carried out", "what", text, "took", took)
		d.say(fsm.OrderReport{State: fsm.PartFrozen, Text: text, Took: fsm.Millis(took / time.Millisecond)})
		select {
		case <-d.over:
		case <-n.ctx.Done():
		case <-prepared.Done():
		}
	}
	d.thaw(prepared)
}

// thaw undoes it, or learns why it is undone, and reports that.
func (d *duty) thaw(prepared Prepared) {
	own := true // it has ended by itself
	select {
	case <-prepared.Done():
	default:
		// By itself too if that was shortly before: then what was done under it has not been
		// frozen for all that time.
		own = d.undo(prepared) && causeOf(prepared.Cause()) != fsm.ThawAsked
	}
	cause, reason := d.ended()
	r := fsm.OrderReport{State: fsm.PartThawed, Cause: cause}
	if own {
		r.Cause = causeOf(prepared.Cause())
		if err := prepared.Err(); err != nil {
			r.Text = err.Error()
		}
	}
	d.orders.node.log.Info("order undone", "order", d.order, "action", d.task.Action, "by", d.task.By, "cause", r.Cause, "reason", reason)
	d.say(r)
}

// causeOf reads what an executor says. What has failed counts as a lost guard; its error
// says more.
func causeOf(s string) fsm.ThawCause {
	switch s {
	case "deadline":
		return fsm.ThawDeadline
	case "asked":
		return fsm.ThawAsked
	case "quorum":
		return fsm.ThawQuorum
	case "local":
		return fsm.ThawLocal
	}
	return fsm.ThawGuard
}

func (d *duty) prepare() (Prepared, error) {
	n := d.orders.node
	if n.cfg.Executor == nil {
		return nil, fmt.Errorf("%w on %s: start lockerd there with --executors", errExecutorsOff, n.cfg.Name)
	}
	return n.cfg.Executor.Prepare(d.ctx, d.task)
}

// awaitTurn waits until the earlier orders are prepared here. Orders that are for the same
// thing are in each other's way, so if one node had the one first, and another node
// another one, none would be carried out.
func (d *duty) awaitTurn() {
	for _, past := range d.orders.before(d.order) {
		select {
		case <-past:
		case <-d.ctx.Done():
			return
		}
	}
}

// before gives the moments at which the orders up to one are prepared here.
func (s *orders) before(id fsm.OrderID) (list []<-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.duties {
		if d.order < id {
			list = append(list, d.past)
		}
	}
	return list
}

// awaitEarlier waits until the earlier orders are frozen here that are to be: for the same
// reason, as all may have been prepared before one of them was frozen.
func (d *duty) awaitEarlier() {
	for _, tried := range d.orders.going(d.order) {
		select {
		case <-tried:
		case <-d.ctx.Done():
			return
		}
	}
}

// going gives the moments at which the orders up to one are frozen here that all nodes
// are ready for.
func (s *orders) going(id fsm.OrderID) (list []<-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.duties {
		if d.order >= id {
			continue
		}
		select {
		case <-d.freeze:
			list = append(list, d.tried)
		default:
		}
	}
	return list
}

// awaitGo waits until all nodes are ready; false means that nothing is to be frozen. The
// leader has to be met first: what says so may have been long on its way.
func (d *duty) awaitGo(prepared Prepared) bool {
	for _, ch := range [...]<-chan struct{}{d.freeze, d.orders.inTouch()} {
		select {
		case <-ch:
		case <-d.over:
			return false
		case <-prepared.Done():
			return false
		case <-d.orders.node.ctx.Done():
			return false
		}
	}
	select {
	case <-d.over:
		return false
	default:
		return true
	}
}

// undo thaws for certain: what does not go at once is tried again for as long as the
// node runs. After that it is the guard's. It says whether it went at once.
func (d *duty) undo(prepared Prepared) (once bool) {
	n := d.orders.node
	for once = true; ; once = false {
		err := prepared.Thaw()
		if err == nil {
			return once
		}
		n.log.Error("not thawed yet", "order", d.order, "error", err)
		select {
		case <-prepared.Done():
			return false
		case <-n.ctx.Done():
			return false
		case <-time.After(thawAgain):
		}
	}
}

// say leaves a report for the table.
func (d *duty) say(r fsm.OrderReport) {
	r.Order, r.Node, r.Text = d.order, d.inc, oneLine(r.Text)
	d.mu.Lock()
	d.next = &r
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// report brings the latest report to the table, until the last one is there.
func (d *duty) report() {
	n := d.orders.node
	defer d.orders.done(d)
	for {
		select {
		case <-d.wake:
		case <-n.ctx.Done():
			return
		}
		for {
			d.mu.Lock()
			r := *d.next
			d.mu.Unlock()
			res, err := n.Submit(n.ctx, r)
			if err == nil && res.Code == fsm.Refused {
				n.log.Error("the table does not take a report", "order", d.order, "report", r, "reason", res.Reason)
			}
			if err == nil && r.State >= fsm.PartFailed {
				return
			}
			if err == nil {
				break
			}
			if n.ctx.Err() != nil {
				return
			}
			n.log.Debug("order not reported yet", "order", d.order, "error", err)
			pause(n.ctx, reportAgain)
		}
	}
}

// oneLine makes a text fit for a report and for a line of a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(s), "?"))
	if len(s) > fsm.MaxOrderText {
		s = strings.ToValidUTF8(s[:fsm.MaxOrderText-3], "") + "..."
	}
	return s
}
