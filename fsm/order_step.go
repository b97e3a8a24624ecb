package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// change puts a copy of an open order in its place, to be changed before anybody
// sees it.
func (m *Machine) change(o *Order) *Order {
	again := *o
	again.Parts = slices.Clone(o.Parts)
	m.orders.open[slices.Index(m.orders.open, o)] = &again
	return &again
}

// orderReport takes a node's word. What is repeated, comes behind a later one or is
// about an order that is closed changes nothing.
func (m *Machine) orderReport(c OrderReport) Result {
	o := m.orders.find(c.Order)
	if o == nil {
		return Result{}
	}
	i := o.part(c.Node)
	if i < 0 || o.Parts[i].State.final() || c.State <= o.Parts[i].State {
		return Result{}
	}
	o = m.change(o)
	p := *o.Parts[i]
	p.State, p.Cause = c.State, c.Cause
	if c.Text != "" {
		p.Text = c.Text
	}
	if c.State == PartFrozen {
		p.Took = c.Took
	}
	o.Parts[i] = &p
	m.advance(o, &p)
	m.settle()
	return Result{}
}

// advance carries an order on after one of its parts has got on.
func (m *Machine) advance(o *Order, p *OrderPart) {
	switch {
	case o.IsOver():
		m.closeIfDone(o)
	case p.State == PartFailed:
		m.endOrder(o, OrderFailed, p.Name, p.Text)
	case p.State == PartThawed:
		reason, text := p.Cause.reason()
		m.endOrder(o, reason, p.Name, text)
	case p.State == PartFrozen && o.State == OrderPreparing:
		m.endOrder(o, OrderFailed, p.Name, "it has not waited for the others")
	case p.State == PartReady && o.all(PartReady, PartReady):
		o.State, o.Went = OrderFreezing, m.now
		m.orderEvent(EventOrderFreezing, o)
	case p.State == PartFrozen:
		if !slices.ContainsFunc(o.Parts, func(q *OrderPart) bool { return q != p && q.State == PartFrozen }) {
			o.First = m.now
		}
		if o.all(PartFrozen, PartFrozen) {
			o.State, o.Frozen = OrderFrozen, m.now
			m.orderEvent(EventOrderFrozen, o)
		}
	}
}

// reason is what it means for an order that a node has thawed without being told to.
func (c ThawCause) reason() (OrderReason, string) {
	switch c {
	case ThawDeadline:
		return OrderDeadline, ""
	case ThawQuorum:
		return OrderQuorum, ""
	case ThawStopping:
		return OrderNodeLeft, ""
	case ThawGuard:
		return OrderFailed, "what guards the freeze was lost"
	case ThawLocal:
		return OrderFailed, "it was thawed on the host itself"
	}
	return OrderFailed, "it was thawed before the order had ended"
}

func (m *Machine) orderEnd(c OrderEnd) Result {
	o := m.orders.find(c.Order)
	switch {
	case o != nil:
		m.endOrder(m.change(o), c.Reason, c.By, "")
		m.settle()
	case c.Order > m.orders.last:
		return refused(fmt.Sprintf("there is no order %d", c.Order))
	}
	return Result{Order: c.Order}
}

// endOrder has an order undone, for the first reason that there is. o was made by change.
func (m *Machine) endOrder(o *Order, reason OrderReason, who, text string) {
	if !o.IsOver() {
		o.State, o.Ended, o.Reason, o.Who, o.Text = OrderThawing, m.now, reason, who, text
		m.orders.ended[reason]++
		m.orderEvent(EventOrderEnded, o)
	}
	m.closeIfDone(o)
}

// closeIfDone closes an order that has ended once nothing of it is left anywhere.
func (m *Machine) closeIfDone(o *Order) {
	if !o.all(PartFailed, PartThawed) {
		return
	}
	// A copy, as what has been told of it already must not change.
	done := *o
	done.State, done.Closed = OrderClosed, m.now
	i := slices.Index(m.orders.open, o)
	m.orders.open = slices.Delete(m.orders.open, i, i+1)
	m.orders.remember(&done)
	m.orderEvent(EventOrderClosed, &done)
	if done.ReleaseLock {
		if cl := m.holds.byKey[uint64(done.Fence)]; cl != nil {
			m.endHold(cl, CauseOrder, done.By)
		}
	}
}

// remember keeps a closed order, and not too many.
func (l *orders) remember(o *Order) {
	l.closed = append(l.closed, o)
	n := 0
	for _, o := range l.closed {
		n += len(o.Parts)
	}
	for len(l.closed) > MaxClosed || n > maxClosedParts && len(l.closed) > 1 {
		n -= len(l.closed[0].Parts)
		l.closed[0] = nil
		l.closed = l.closed[1:]
	}
}

// eachOrder calls f for the open orders that concerns names, by id. f may end others.
func (m *Machine) eachOrder(concerns func(*Order) bool, f func(*Order)) {
	if !slices.ContainsFunc(m.orders.open, concerns) {
		return // nearly always
	}
	for _, o := range slices.Clone(m.orders.open) {
		if now := m.orders.find(o.ID); now != nil && concerns(now) {
			f(now)
		}
	}
}

// expireOrders ends the orders whose time has come, by id.
func (m *Machine) expireOrders() {
	due := func(o *Order) bool {
		at, ok := o.Deadline()
		return ok && at <= m.now
	}
	m.eachOrder(due, func(o *Order) {
		reason, text := OrderDeadline, ""
		switch end, timed := expiry(o.Went, o.Timeout); {
		case o.State == OrderPreparing:
			reason, text = OrderFailed, o.missing(PartReady, "not ready", orderPrepare)
		case o.State == OrderFreezing && (!timed || end > m.now):
			what := "not frozen"
			if o.Within != 0 {
				what = "not done"
			}
			reason, text = OrderFailed, o.missing(PartFrozen, what, o.within())
		}
		m.endOrder(m.change(o), reason, "", text)
	})
}

// missing names nodes that have not got to a state in time, the first few.
func (o *Order) missing(state PartState, what string, within Millis) string {
	var list []string
	n := 0
	for _, p := range o.Parts {
		if p.State < state {
			if n++; n <= 3 {
				list = append(list, p.Name)
			}
		}
	}
	if n > len(list) {
		list = append(list, fmt.Sprintf("%d more", n-len(list)))
	}
	span := fmt.Sprintf("%d s", within/1000)
	if within%1000 != 0 {
		span = fmt.Sprintf("%d ms", within)
	}
	return fmt.Sprintf("%s within %s: %s", what, span, strings.Join(list, ", "))
}

// lockEnded ends the orders that stand under a hold which is over.
func (m *Machine) lockEnded(f Fence) {
	under := func(o *Order) bool { return o.Fence == f && !o.IsOver() }
	m.eachOrder(under, func(o *Order) { m.endOrder(m.change(o), OrderLock, "", "") })
}

// nodeLost ends the orders that need a node which is out of touch, or has gone. What
// it had frozen counts as frozen until it says otherwise, or is gone.
func (m *Machine) nodeLost(n Node, reason OrderReason) {
	gone := reason == OrderNodeGone
	needs := func(o *Order) bool {
		p := o.Part(n.Incarnation)
		return p != nil && gone && !p.State.final() || !o.IsOver() && (p != nil || o.Requester == n.Incarnation)
	}
	m.eachOrder(needs, func(o *Order) {
		o = m.change(o)
		i := o.part(n.Incarnation)
		if i < 0 {
			m.endOrder(o, OrderRequester, n.Name, "")
			return
		}
		if gone && !o.Parts[i].State.final() {
			p := *o.Parts[i]
			p.State, p.Cause = PartThawed, ThawGone
			o.Parts[i] = &p
		}
		m.endOrder(o, reason, n.Name, "")
	})
}

// nameLost ends the orders that need a node which another one has succeeded under its
// name, or which was removed.
func (m *Machine) nameLost(name string, reason OrderReason) {
	needs := func(o *Order) bool {
		return !o.IsOver() && slices.ContainsFunc(o.Parts, func(p *OrderPart) bool { return p.Name == name })
	}
	m.eachOrder(needs, func(o *Order) { m.endOrder(m.change(o), reason, name, "") })
}
