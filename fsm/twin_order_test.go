package fsm

import "slices"

// The twin's orders: a list of all that there ever were, looked through for everything.

func (t *twin) openOrder(ask Ask, c OrderOpen) Result {
	open, parts := 0, 0
	for _, o := range t.orders {
		if o.Nonce == c.Nonce && t.knows(o) {
			return Result{Order: o.ID}
		}
		if o.State != OrderClosed {
			open++
			parts += len(o.Parts)
		}
	}
	o := Order{
		ID: t.order + 1, Nonce: c.Nonce, By: c.By, Action: c.Action, Spec: c.Spec, Timeout: c.Timeout, Within: c.Within,
		Fence: c.Fence, ReleaseLock: c.ReleaseLock, Opened: t.now,
	}
	if c.Attached {
		o.Requester = ask.Node
	}
	held := slices.ContainsFunc(t.holds, func(h Hold) bool { return h.Fence == c.Fence })
	if open == MaxOpenOrders || c.Attached && ask.Node == 0 || c.Fence != 0 && !held {
		return Result{Code: Refused}
	}
	names := c.Nodes
	if c.AllNodes {
		for _, n := range t.nodes {
			if !slices.ContainsFunc(t.nodes, func(l Node) bool { return l.Name == n.Name && l.Incarnation > n.Incarnation }) {
				names = append(names, n.Name)
			}
		}
	}
	for _, name := range names {
		var latest Node
		for _, n := range t.nodes {
			if n.Name == name {
				latest = n
			}
		}
		if latest.Name == "" || latest.Away {
			return Result{Code: Refused}
		}
		o.Parts = append(o.Parts, &OrderPart{Node: latest.Incarnation, Name: name})
	}
	if len(o.Parts) == 0 || parts+len(o.Parts) > maxOpenParts {
		return Result{Code: Refused}
	}
	t.order++
	t.orders = append(t.orders, o)
	t.tell(EventOrderOpened, o)
	return Result{Order: o.ID}
}

// knows reports whether an order is open, or one of the latest that were closed.
func (t *twin) knows(o Order) bool {
	return o.State != OrderClosed || slices.Contains(t.done[max(0, len(t.done)-MaxClosed):], o.ID)
}

func (t *twin) tell(kind EventKind, o Order) {
	again := o
	again.Parts = nil
	for _, p := range o.Parts {
		part := *p
		again.Parts = append(again.Parts, &part)
	}
	t.events = append(t.events, Event{Kind: kind, By: o.By, At: t.now, Order: &again})
}

func (t *twin) reportOrder(c OrderReport) {
	for i := range t.orders {
		o := &t.orders[i]
		p := o.Part(c.Node)
		if o.ID != c.Order || o.State == OrderClosed || p == nil || p.State >= c.State || p.State == PartFailed {
			continue
		}
		p.State, p.Cause = c.State, c.Cause
		if c.Text != "" {
			p.Text = c.Text
		}
		if c.State == PartFrozen {
			p.Took = c.Took
		}
		count := func(s PartState) (n int) {
			for _, p := range o.Parts {
				if p.State == s {
					n++
				}
			}
			return n
		}
		reasons := map[ThawCause]OrderReason{
			ThawAsked: OrderFailed, ThawGuard: OrderFailed, ThawLocal: OrderFailed, ThawDeadline: OrderDeadline, ThawQuorum: OrderQuorum, ThawStopping: OrderNodeLeft,
		}
		switch {
		case o.State == OrderThawing:
			t.endOrder(o, 0, "", "")
		case c.State == PartFailed:
			t.endOrder(o, OrderFailed, p.Name, p.Text)
		case c.State == PartThawed:
			text := map[ThawCause]string{
				ThawAsked: "it was thawed before the order had ended", ThawGuard: "what guards the freeze was lost",
				ThawLocal: "it was thawed on the host itself",
			}[c.Cause]
			t.endOrder(o, reasons[c.Cause], p.Name, text)
		case c.State == PartFrozen && o.State == OrderPreparing:
			t.endOrder(o, OrderFailed, p.Name, "it has not waited for the others")
		case o.State == OrderPreparing && count(PartReady) == len(o.Parts):
			o.State, o.Went = OrderFreezing, t.now
			t.tell(EventOrderFreezing, *o)
		case c.State == PartFrozen:
			if count(PartFrozen) == 1 {
				o.First = t.now
			}
			if count(PartFrozen) == len(o.Parts) {
				o.State, o.Frozen = OrderFrozen, t.now
				t.tell(EventOrderFrozen, *o)
			}
		}
	}
}

// endOrder ends an order unless it has ended, and closes it if all is undone.
func (t *twin) endOrder(o *Order, reason OrderReason, who, text string) {
	if o.State < OrderThawing {
		o.State, o.Ended, o.Reason, o.Who, o.Text = OrderThawing, t.now, reason, who, text
		t.tell(EventOrderEnded, *o)
	}
	for _, p := range o.Parts {
		if p.State < PartFailed {
			return
		}
	}
	o.State, o.Closed = OrderClosed, t.now
	t.done = append(t.done, o.ID)
	t.tell(EventOrderClosed, *o)
	for _, h := range t.holds {
		if o.ReleaseLock && h.Fence == o.Fence {
			t.drop(h, CauseOrder, o.By)
		}
	}
}

// eachOpen calls f for every open order that has not ended.
func (t *twin) eachOpen(f func(o *Order)) {
	for i := range t.orders {
		if t.orders[i].State < OrderThawing {
			f(&t.orders[i])
		}
	}
}

func (t *twin) dueOrders() {
	t.eachOpen(func(o *Order) {
		after := func(from, span Millis) bool { return t.now > from+span }
		timed := o.Timeout != 0 && after(o.Went, o.Timeout)
		switch {
		case o.State == OrderPreparing && after(o.Opened, 60_000):
			t.endOrder(o, OrderFailed, "", o.missing(PartReady, "not ready", 60_000))
		case o.State == OrderPreparing:
		case timed:
			t.endOrder(o, OrderDeadline, "", "")
		case o.State == OrderFreezing && o.Within != 0 && after(o.Went, o.Within):
			t.endOrder(o, OrderFailed, "", o.missing(PartFrozen, "not done", o.Within))
		case o.State == OrderFreezing && o.Within == 0 && after(o.Went, 60_000):
			t.endOrder(o, OrderFailed, "", o.missing(PartFrozen, "not frozen", 60_000))
		}
	})
}

func (t *twin) orderNode(n Node, reason OrderReason) {
	for i := range t.orders {
		o := &t.orders[i]
		p := o.Part(n.Incarnation)
		gone := p != nil && reason == OrderNodeGone && p.State < PartFailed && o.State != OrderClosed
		if gone {
			p.State, p.Cause = PartThawed, ThawGone
		}
		switch {
		case gone, p != nil && o.State < OrderThawing:
			t.endOrder(o, reason, n.Name, "")
		case o.State < OrderThawing && o.Requester == n.Incarnation && n.Incarnation != 0:
			t.endOrder(o, OrderRequester, n.Name, "")
		}
	}
}

func (t *twin) orderName(name string, reason OrderReason) {
	t.eachOpen(func(o *Order) {
		if slices.ContainsFunc(o.Parts, func(p *OrderPart) bool { return p.Name == name }) {
			t.endOrder(o, reason, name, "")
		}
	})
}

func (t *twin) orderLock(f Fence) {
	t.eachOpen(func(o *Order) {
		if o.Fence == f {
			t.endOrder(o, OrderLock, "", "")
		}
	})
}
