package fsm

import (
	"fmt"
	"slices"
)

// orders are the order ledger: those that are open, by id, and the latest that were
// closed, as they were.
type orders struct {
	last   OrderID // the last one given out
	open   []*Order
	closed []*Order
	ended  OrdersEnded
}

// OrdersEnded says how many orders have ended so far, by reason.
type OrdersEnded [OrderLock + 1]uint64

func (l orders) clone() orders {
	l.open, l.closed = slices.Clone(l.open), slices.Clone(l.closed)
	return l
}

func (l *orders) find(id OrderID) *Order {
	if i := slices.IndexFunc(l.open, func(o *Order) bool { return o.ID == id }); i >= 0 {
		return l.open[i]
	}
	return nil
}

// Orders returns the open orders, by id, and the closed ones that are remembered, in
// the order in which they were closed.
func (m *Machine) Orders() (open, closed []*Order) {
	return slices.Clone(m.orders.open), slices.Clone(m.orders.closed)
}

// Order returns an order, nil if there is none or it is forgotten.
func (m *Machine) Order(id OrderID) *Order {
	if o := m.orders.find(id); o != nil {
		return o
	}
	if i := slices.IndexFunc(m.orders.closed, func(o *Order) bool { return o.ID == id }); i >= 0 {
		return m.orders.closed[i]
	}
	return nil
}

func (m *Machine) orderOpen(ask Ask, c OrderOpen) Result {
	for _, list := range [...][]*Order{m.orders.open, m.orders.closed} {
		for _, o := range list {
			if o.Nonce == c.Nonce {
				return Result{Order: o.ID}
			}
		}
	}
	if len(m.orders.open) >= MaxOpenOrders {
		return refused(fmt.Sprintf("%d orders are open already", len(m.orders.open)))
	}
	if c.Attached && ask.Node == 0 {
		return refused("an order can end with a node only if it comes from one")
	}
	if c.Fence != 0 && m.holds.byKey[uint64(c.Fence)] == nil {
		return refused(fmt.Sprintf("the hold with fence %d is over", c.Fence))
	}
	parts, reason := m.assign(c)
	if reason != "" {
		return refused(reason)
	}
	n := len(parts)
	for _, o := range m.orders.open {
		n += len(o.Parts)
	}
	if n > maxOpenParts {
		return refused(fmt.Sprintf("the open orders would have %d parts in all; at most %d are allowed", n, maxOpenParts))
	}
	m.orders.last++
	o := &Order{
		ID: m.orders.last, Nonce: c.Nonce, By: c.By, Action: c.Action, Spec: c.Spec, Timeout: c.Timeout, Within: c.Within,
		Fence: c.Fence, ReleaseLock: c.ReleaseLock, Parts: parts, Opened: m.now,
	}
	if c.Attached {
		o.Requester = ask.Node
	}
	m.orders.open = append(m.orders.open, o)
	m.orderEvent(EventOrderOpened, o)
	return Result{Order: o.ID}
}

// assign resolves names to incarnations: the latest of each name, which has to be in
// touch. AllNodes are the latest of all names.
func (m *Machine) assign(c OrderOpen) (parts []*OrderPart, reason string) {
	latest := make(map[string]*session, len(m.sessions))
	for _, s := range m.sessions {
		latest[s.node.Name] = s
	}
	if c.AllNodes {
		for _, s := range m.sessions {
			switch {
			case latest[s.node.Name] != s:
			case s.node.Away:
				return nil, fmt.Sprintf("node %s is out of touch", brief(s.node.Name))
			default:
				parts = append(parts, &OrderPart{Node: s.node.Incarnation, Name: s.node.Name})
			}
		}
		if len(parts) == 0 {
			return nil, "there are no nodes"
		}
		return parts, ""
	}
	for _, name := range c.Nodes {
		switch s := latest[name]; {
		case s == nil:
			return nil, fmt.Sprintf("node %s is not in the cluster, or out of touch for long", brief(name))
		case s.node.Away:
			return nil, fmt.Sprintf("node %s is out of touch", brief(name))
		default:
			parts = append(parts, &OrderPart{Node: s.node.Incarnation, Name: name})
		}
	}
	return parts, ""
}

func (m *Machine) orderEvent(kind EventKind, o *Order) {
	m.events = append(m.events, Event{Kind: kind, Order: o, By: o.By, At: m.now})
}
