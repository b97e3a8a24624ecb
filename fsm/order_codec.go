package fsm

import (
	"encoding/binary"
	"fmt"
)

// Least bytes that a part and an order take.
const (
	leastPart  = 6
	leastOrder = 35
)

// Flags of orders. What has orderWithin is not understood by releases without it, which
// would have it end at another time.
const (
	orderRelease = 1 << iota
	orderAttached
	orderAll
	orderWithin // the time follows
)

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// blob reads bytes of any kind; nil if there are none.
func (r *reader) blob(bound int, what string) []byte {
	return append([]byte(nil), r.bytes(r.count(bound, 1, what))...)
}

func (r *reader) flags(all byte) byte {
	v := r.byte()
	if v&^all != 0 && r.err == nil {
		r.err, r.b = fmt.Errorf("%w (flags %#x are not known here)", ErrNewer, v&^all), nil
	}
	return v
}

func appendOrderOpen(b []byte, c OrderOpen) []byte {
	b = append(b, c.Nonce[:]...)
	b = appendString(b, c.By)
	b = appendString(b, c.Action)
	b = appendBytes(b, c.Spec)
	b = appendStrings(b, c.Nodes)
	b = binary.AppendUvarint(b, uint64(c.Timeout))
	b = binary.AppendUvarint(b, uint64(c.Fence))
	b = append(b, orderFlags(c.ReleaseLock, c.Attached, c.AllNodes, c.Within))
	return appendWithin(b, c.Within)
}

// appendWithin writes a time for which there is a flag.
func appendWithin(b []byte, within Millis) []byte {
	if within == 0 {
		return b
	}
	return binary.AppendUvarint(b, uint64(within))
}

func (r *reader) within(flags byte) Millis {
	if flags&orderWithin == 0 {
		return 0
	}
	t := r.orderTime()
	if t == 0 {
		r.fail("an order within no time")
	}
	return t
}

func orderFlags(release, attached, all bool, within Millis) (flags byte) {
	if release {
		flags |= orderRelease
	}
	if attached {
		flags |= orderAttached
	}
	if all {
		flags |= orderAll
	}
	if within != 0 {
		flags |= orderWithin
	}
	return flags
}

func (r *reader) orderOpen() OrderOpen {
	var c OrderOpen
	copy(c.Nonce[:], r.bytes(len(c.Nonce)))
	c.By = r.text(MaxOwner, "name of who asks")
	c.Action = r.text(MaxOrderAction, "action")
	c.Spec = r.blob(MaxOrderSpec, "spec")
	for range r.count(MaxOrderNodes, 1, "nodes") {
		c.Nodes = append(c.Nodes, r.text(MaxHost, "node name"))
	}
	c.Timeout = r.orderTime()
	c.Fence = Fence(r.uvarint())
	flags := r.flags(orderRelease | orderAttached | orderAll | orderWithin)
	c.ReleaseLock, c.Attached, c.AllNodes = flags&orderRelease != 0, flags&orderAttached != 0, flags&orderAll != 0
	c.Within = r.within(flags)
	return c
}

func appendOrderReport(b []byte, c OrderReport) []byte {
	b = binary.AppendUvarint(b, uint64(c.Order))
	b = binary.AppendUvarint(b, uint64(c.Node))
	b = append(b, byte(c.State), byte(c.Cause))
	b = appendString(b, c.Text)
	return binary.AppendUvarint(b, uint64(c.Took))
}

func (r *reader) orderReport() OrderReport {
	return OrderReport{
		Order: OrderID(r.uvarint()), Node: Incarnation(r.uvarint()),
		State: PartState(r.byte()), Cause: ThawCause(r.byte()),
		Text: r.text(MaxOrderText, "report"), Took: r.orderTime(),
	}
}

func appendOrderEnd(b []byte, c OrderEnd) []byte {
	b = binary.AppendUvarint(b, uint64(c.Order))
	b = appendString(b, c.By)
	return append(b, byte(c.Reason))
}

func (r *reader) orderEnd() OrderEnd {
	return OrderEnd{Order: OrderID(r.uvarint()), By: r.text(MaxOwner, "name of who asks"), Reason: OrderReason(r.byte())}
}

func appendOrder(b []byte, o *Order) []byte {
	b = binary.AppendUvarint(b, uint64(o.ID))
	b = append(b, o.Nonce[:]...)
	b = appendString(b, o.By)
	b = appendString(b, o.Action)
	b = appendBytes(b, o.Spec)
	for _, v := range [...]uint64{uint64(o.Timeout), uint64(o.Requester), uint64(o.Fence)} {
		b = binary.AppendUvarint(b, v)
	}
	b = append(b, orderFlags(o.ReleaseLock, false, false, o.Within))
	b = appendWithin(b, o.Within)
	b = append(b, byte(o.State), byte(o.Reason))
	b = appendString(b, o.Who)
	b = appendString(b, o.Text)
	for _, v := range [...]Millis{o.Opened, o.Went, o.First, o.Frozen, o.Ended, o.Closed} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendUvarint(b, uint64(len(o.Parts)))
	for _, p := range o.Parts {
		b = binary.AppendUvarint(b, uint64(p.Node))
		b = appendString(b, p.Name)
		b = append(b, byte(p.State), byte(p.Cause))
		b = appendString(b, p.Text)
		b = binary.AppendUvarint(b, uint64(p.Took))
	}
	return b
}

// orderTime is a span, within the bound that nobody's clocks and units overflow in.
func (r *reader) orderTime() Millis {
	t := r.millis()
	if t > MaxOrderTimeout {
		r.fail("an order's time of %d ms", t)
	}
	return t
}

func (r *reader) order() *Order {
	o := &Order{ID: OrderID(r.uvarint())}
	copy(o.Nonce[:], r.bytes(len(o.Nonce)))
	o.By = r.text(MaxOwner, "name of who asks")
	o.Action = r.text(MaxOrderAction, "action")
	o.Spec = r.blob(MaxOrderSpec, "spec")
	o.Timeout, o.Requester, o.Fence = r.orderTime(), Incarnation(r.uvarint()), Fence(r.uvarint())
	flags := r.flags(orderRelease | orderWithin)
	o.ReleaseLock, o.Within = flags&orderRelease != 0, r.within(flags)
	o.State, o.Reason = OrderState(r.byte()), OrderReason(r.byte())
	if o.State > OrderClosed || o.Reason > OrderLock {
		r.fail("order in state %d for reason %d", o.State, o.Reason)
	}
	o.Who = r.text(MaxOwner, "name of who ended an order")
	o.Text = r.text(MaxOrderText, "report")
	for _, at := range [...]*Millis{&o.Opened, &o.Went, &o.First, &o.Frozen, &o.Ended, &o.Closed} {
		*at = r.millis()
	}
	for range r.count(maxOpenParts, leastPart, "parts") {
		p := &OrderPart{
			Node: Incarnation(r.uvarint()), Name: r.text(MaxHost, "node name"),
			State: PartState(r.byte()), Cause: ThawCause(r.byte()),
			Text: r.text(MaxOrderText, "report"), Took: r.orderTime(),
		}
		if p.State > PartThawed || p.Cause > ThawLocal {
			r.fail("part in state %d by cause %d", p.State, p.Cause)
		}
		if r.err != nil {
			break
		}
		o.Parts = append(o.Parts, p)
	}
	return o
}

// appendEnded writes the counts up to the last that is not zero.
func appendEnded(b []byte, e OrdersEnded) []byte {
	n := len(e)
	for n > 0 && e[n-1] == 0 {
		n--
	}
	b = binary.AppendUvarint(b, uint64(n))
	for _, v := range e[:n] {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// orders reads what Encode wrote of orders.
func (r *reader) orders(m *Machine) {
	if r.err != nil || len(r.b) == 0 {
		return
	}
	if a, b := r.byte(), r.byte(); a|b != 0 {
		r.fail("an unknown part")
	}
	m.orders.last = OrderID(r.uvarint())
	if r.err == nil && m.orders.last == 0 {
		r.fail("an empty ledger of orders")
	}
	n := r.count(len(m.orders.ended), 1, "reasons")
	for i := range n {
		m.orders.ended[i] = r.uvarint()
	}
	if r.err == nil && n > 0 && m.orders.ended[n-1] == 0 {
		r.fail("a zero at the end")
	}
	m.orders.open = r.orderList(MaxOpenOrders)
	m.orders.closed = r.orderList(MaxClosed)
}

func (r *reader) orderList(bound int) (list []*Order) {
	for range r.count(bound, leastOrder, "orders") {
		o := r.order()
		if r.err != nil {
			return nil
		}
		list = append(list, o)
	}
	return list
}
