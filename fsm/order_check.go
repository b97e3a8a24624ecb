package fsm

import (
	"errors"
	"fmt"
)

func (m *Machine) checkOrders() error {
	l := &m.orders
	if len(l.open) > MaxOpenOrders || len(l.closed) > MaxClosed {
		return fmt.Errorf("I14: %d orders are open, and %d closed ones remembered", len(l.open), len(l.closed))
	}
	if ended := uint64(l.last) - uint64(len(l.open)); l.sum() < uint64(len(l.closed)) || l.sum() < ended || l.sum() > uint64(l.last) {
		return fmt.Errorf("I14: %d orders have ended, of %d", l.sum(), l.last)
	}
	ids := make(map[OrderID]bool)
	nonces := make(map[[16]byte]bool)
	last := OrderID(0)
	for i, list := range [...][]*Order{l.open, l.closed} {
		parts := 0
		for _, o := range list {
			switch {
			case i == 0 && o.ID <= last:
				return fmt.Errorf("I14: order %d is out of order", o.ID)
			case o.ID == 0 || o.ID > l.last || ids[o.ID] || nonces[o.Nonce] || o.Nonce == [16]byte{}:
				return fmt.Errorf("I14: order %d, or its nonce, is not the only one", o.ID)
			case (o.State == OrderClosed) != (i == 1):
				return fmt.Errorf("I14: order %d is %v among the others", o.ID, o.State)
			}
			last, ids[o.ID], nonces[o.Nonce] = o.ID, true, true
			parts += len(o.Parts)
			if err := m.checkOrder(o); err != nil {
				return err
			}
		}
		if i == 0 && parts > maxOpenParts || i == 1 && parts > maxClosedParts && len(list) > 1 {
			return fmt.Errorf("I14: orders have %d parts", parts)
		}
	}
	return nil
}

func (m *Machine) checkOrder(o *Order) error {
	c := OrderOpen{Nonce: o.Nonce, By: o.By, Action: o.Action, Spec: o.Spec, AllNodes: true, Timeout: o.Timeout, Within: o.Within, Fence: o.Fence, ReleaseLock: o.ReleaseLock}
	if err := c.validate(); err != nil {
		return fmt.Errorf("I14: order %d: %w", o.ID, err)
	}
	if len(o.Parts) == 0 || (o.Reason != OrderOpenStill) != o.IsOver() {
		return fmt.Errorf("I15: order %d has %d parts, and is %v for reason %v", o.ID, len(o.Parts), o.State, o.Reason)
	}
	for _, at := range [...]Millis{o.Opened, o.Went, o.First, o.Frozen, o.Ended, o.Closed} {
		if at > m.now {
			return fmt.Errorf("I17: order %d has a stamp of the future", o.ID)
		}
	}
	if at, ok := o.Deadline(); ok && at <= m.now {
		return fmt.Errorf("I17: order %d should have ended at %d", o.ID, at)
	}
	if !o.agrees() {
		return fmt.Errorf("I15: order %d is %v, and its parts are otherwise", o.ID, o.State)
	}
	if !o.IsOver() {
		if o.Fence != 0 && m.holds.byKey[uint64(o.Fence)] == nil {
			return fmt.Errorf("I16: order %d stands under a hold that is over", o.ID)
		}
		if s := m.session(o.Requester); o.Requester != 0 && (s == nil || s.node.Away) {
			return fmt.Errorf("I16: who asked for order %d has gone", o.ID)
		}
	}
	nodes, names := make(map[Incarnation]bool), make(map[string]bool)
	for _, p := range o.Parts {
		if nodes[p.Node] || names[p.Name] || p.Name == "" {
			return fmt.Errorf("I15: order %d has two parts of one node", o.ID)
		}
		nodes[p.Node], names[p.Name] = true, true
		if (p.State == PartThawed) != (p.Cause != ThawNone) {
			return fmt.Errorf("I15: order %d: %s is %v by cause %v", o.ID, brief(p.Name), p.State, p.Cause)
		}
		if err := m.checkPart(o, p); err != nil {
			return fmt.Errorf("I16: order %d: %s: %w", o.ID, brief(p.Name), err)
		}
	}
	return nil
}

var (
	errPartGone = errors.New("the node is gone, and its part is not")
	errPartAway = errors.New("the node is away or succeeded, and the order has not ended")
)

// checkPart verifies what a part says of its node.
func (m *Machine) checkPart(o *Order, p *OrderPart) error {
	s := m.session(p.Node)
	switch {
	case s == nil && !p.State.final():
		return errPartGone
	case s == nil || o.IsOver():
		return nil
	case s.node.Away || s.node.Name != p.Name:
		return errPartAway
	}
	for _, other := range m.sessions {
		if other.node.Name == p.Name && other.node.Incarnation > p.Node {
			return errPartAway
		}
	}
	return nil
}

// agrees reports whether an order is in the state that follows from its parts.
func (o *Order) agrees() bool {
	switch o.State {
	case OrderPreparing:
		return o.all(PartPreparing, PartReady) && !o.all(PartReady, PartReady)
	case OrderFreezing:
		return o.all(PartReady, PartFrozen) && !o.all(PartFrozen, PartFrozen)
	case OrderFrozen:
		return o.all(PartFrozen, PartFrozen)
	case OrderThawing:
		return !o.all(PartFailed, PartThawed)
	}
	return o.all(PartFailed, PartThawed)
}

// sum is how many orders have ended.
func (l *orders) sum() (sum uint64) {
	for _, n := range l.ended {
		sum += n
	}
	return sum
}
