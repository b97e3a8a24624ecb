package fsm

import (
	"errors"
	"fmt"
	"slices"
)

// OrderID numbers orders as they are opened; never reused. Zero means none.
type OrderID uint64

// Bounds of orders.
const (
	MaxOrderAction = 32       // bytes
	MaxOrderSpec   = 8 << 10  // bytes
	MaxOrderNodes  = 1024     // named in an OrderOpen; AllNodes may be more
	MaxOrderNames  = 64 << 10 // bytes of all these names
	MaxOrderText   = 1024     // bytes of OrderReport.Text
	MaxOpenOrders  = 64
	MaxClosed      = 100 // closed orders that are remembered, the latest

	// MaxOrderTimeout is 365 days: no clock and no unit that a time is told in overflows.
	MaxOrderTimeout = Millis(365 * 24 * 60 * 60 * 1000)

	maxOpenParts   = 16_384 // of all open orders
	maxClosedParts = 8_192  // of all that are remembered, but for the last one

	orderPrepare = Millis(60_000) // for all nodes to be ready; longer than a hook may take there, so that it is told which
	orderFreeze  = Millis(60_000) // and then, to be frozen, if OrderOpen.Within does not say
)

// OrderState is how far an order is. It only rises.
type OrderState uint8

const (
	OrderPreparing OrderState = iota // nodes find out whether they can; nothing is frozen
	OrderFreezing                    // all can, and do
	OrderFrozen                      // all have
	OrderThawing                     // it has ended; some nodes have not said yet that they have undone it
	OrderClosed                      // all have
)

func (s OrderState) String() string {
	return word(int(s), "preparing", "freezing", "frozen", "thawing", "closed")
}

// OrderReason says why an order has ended.
type OrderReason uint8

const (
	OrderOpenStill OrderReason = iota
	OrderThawed                // Order.Who asked for it
	OrderDeadline              // its time was over, as counted here or at the node Who
	OrderRequester             // who had asked for the order has gone
	OrderFailed                // the node Who could not, and Text says why
	OrderNodeAway              // the node Who is out of touch with the leader
	OrderNodeGone              // it was given up, or started anew
	OrderNodeLeft              // it was stopped or removed
	OrderQuorum                // it was out of touch, and has thawed by itself
	OrderLock                  // the hold that it stands under has ended
)

func (r OrderReason) String() string {
	return word(int(r), "none", "thawed", "deadline", "requester", "failed", "node away", "node gone", "node left", "quorum", "lock")
}

// PartState is how far a node is with its part of an order. It only rises, and the
// last two are final: nothing is frozen there.
type PartState uint8

const (
	PartPreparing PartState = iota
	PartReady
	PartFrozen
	PartFailed
	PartThawed
)

func (s PartState) String() string {
	return word(int(s), "preparing", "ready", "frozen", "failed", "thawed")
}

func (s PartState) final() bool { return s >= PartFailed }

// ThawCause says why a node has thawed.
type ThawCause uint8

const (
	ThawNone     ThawCause = iota
	ThawAsked              // the order had ended
	ThawDeadline           // the node's own count of the order's time
	ThawQuorum             // the node was out of touch with the leader
	ThawGuard              // what guards the freeze was lost
	ThawStopping           // lockerd is stopping there
	ThawGone               // nobody has said so: the node's incarnation is over, and what it had frozen with it
	ThawLocal              // somebody has thawed on the host itself
)

func (c ThawCause) String() string {
	return word(int(c), "none", "asked", "deadline", "quorum", "guard", "stopping", "gone", "local")
}

// Order is what somebody has asked nodes to do, and what has come of it. It is never
// changed once it is in the table, nor are its parts.
type Order struct {
	ID          OrderID
	Nonce       [16]byte
	By          string
	Action      string
	Spec        []byte
	Timeout     Millis      // from Went on; 0 = none
	Within      Millis      // from Went to Frozen; 0 = orderFreeze
	Requester   Incarnation // the order ends with it; 0 = it is not attached
	Fence       Fence       // of the hold with which it ends; 0 = none
	ReleaseLock bool        // that hold is released when the order is closed

	State  OrderState
	Reason OrderReason
	Who    string // see OrderReason
	Text   string
	Parts  []*OrderPart // in the order of the names as given, or of incarnations

	// When it was opened, all were ready, the first and then all were frozen, it ended
	// and was closed; zero before, and for what has not happened. (Zero may also be
	// the time itself.)
	Opened, Went, First, Frozen, Ended, Closed Millis
}

// OrderPart is one node's part.
type OrderPart struct {
	Node  Incarnation
	Name  string
	State PartState
	Text  string    // what is frozen, or why not
	Took  Millis    // to freeze, by the node's clock
	Cause ThawCause // of PartThawed
}

// Part returns the part of a node, nil if it has none.
func (o *Order) Part(n Incarnation) *OrderPart {
	if i := o.part(n); i >= 0 {
		return o.Parts[i]
	}
	return nil
}

// For returns the order as one node needs to know it, without the others' parts; nil
// if it has none itself.
func (o *Order) For(n Incarnation) *Order {
	p := o.Part(n)
	if p == nil {
		return nil
	}
	own := *o
	own.Parts = []*OrderPart{p}
	return &own
}

func (o *Order) part(n Incarnation) int {
	return slices.IndexFunc(o.Parts, func(p *OrderPart) bool { return p.Node == n })
}

// all reports whether every part is in one of two states.
func (o *Order) all(a, b PartState) bool {
	return !slices.ContainsFunc(o.Parts, func(p *OrderPart) bool { return p.State != a && p.State != b })
}

// IsOver reports whether the order has ended: it is undone, or being undone.
func (o *Order) IsOver() bool { return o.State >= OrderThawing }

// Deadline returns when the order ends by itself; ok is false if it does not.
func (o *Order) Deadline() (at Millis, ok bool) {
	switch o.State {
	case OrderPreparing:
		return expiry(o.Opened, orderPrepare)
	case OrderFreezing:
		at, ok = expiry(o.Went, o.within())
		if end, timed := expiry(o.Went, o.Timeout); timed && end < at {
			return end, true
		}
		return at, ok
	case OrderFrozen:
		return expiry(o.Went, o.Timeout)
	}
	return 0, false
}

// within is how long the nodes may take to freeze.
func (o *Order) within() Millis {
	if o.Within == 0 {
		return orderFreeze
	}
	return o.Within
}

// OrderOpen asks nodes to do something, all or none. Result.Order is the order. The
// same Nonce again gets the same one. Names mean the incarnations in the table that are
// in touch.
type OrderOpen struct {
	Nonce       [16]byte
	By          string // who asks
	Action      string
	Spec        []byte   // what; only the nodes read it
	Nodes       []string // by name
	AllNodes    bool     // all that the table has, instead; refused if one is out of touch. Those given up are left out
	Timeout     Millis   // once all are ready, at most MaxOrderTimeout; 0 = none
	Within      Millis   // once all are ready, for all to have done it, at most MaxOrderTimeout; 0 = 60 s
	Attached    bool     // ends with the node that asks
	Fence       Fence    // ends with that hold
	ReleaseLock bool     // which is released when the order is closed
}

// OrderReport says how far a node is with its part. It comes from that node.
type OrderReport struct {
	Order OrderID
	Node  Incarnation
	State PartState
	Text  string
	Took  Millis    // PartFrozen
	Cause ThawCause // PartThawed
}

// OrderEnd has an order undone: because By has asked for it (OrderThawed), because who
// had asked for the order has gone (OrderRequester), or because the leader hears nothing
// about it of the node By (OrderNodeAway).
type OrderEnd struct {
	Order  OrderID
	By     string
	Reason OrderReason
}

func (OrderOpen) isCommand()   {}
func (OrderReport) isCommand() {}
func (OrderEnd) isCommand()    {}

var (
	errOrderNonce   = errors.New("an order needs a nonce")
	errOrderBy      = errors.New("an order needs to say who asks for it")
	errOrderAction  = errors.New("an order needs an action")
	errOrderNodes   = errors.New("an order names nodes, or all of them")
	errOrderFence   = errors.New("a lock that is to be released needs the fence of its hold")
	errOrderNone    = errors.New("no order is named")
	errOrderState   = errors.New("a node cannot report that")
	errOrderTimeout = errors.New("the time of an order is at most 365 days; none is longer")
	errOrderReason  = errors.New("an order cannot be ended for that")
)

func (c OrderOpen) validate() error {
	switch {
	case c.Nonce == [16]byte{}:
		return errOrderNonce
	case c.By == "":
		return errOrderBy
	case c.Action == "":
		return errOrderAction
	case len(c.Nodes) > 0 == c.AllNodes:
		return errOrderNodes
	case c.ReleaseLock && c.Fence == 0:
		return errOrderFence
	case c.Timeout > MaxOrderTimeout || c.Within > MaxOrderTimeout:
		return errOrderTimeout
	case len(c.Spec) > MaxOrderSpec:
		return fmt.Errorf("what the order is about takes %d bytes; at most %d are allowed", len(c.Spec), MaxOrderSpec)
	case len(c.Nodes) > MaxOrderNodes:
		return fmt.Errorf("%d nodes are named; at most %d can be (all of them can be)", len(c.Nodes), MaxOrderNodes)
	}
	size := 0
	seen := make(map[string]bool, len(c.Nodes))
	for _, name := range c.Nodes {
		if name == "" {
			return errNodeName
		}
		if seen[name] {
			return fmt.Errorf("node %s is named twice", brief(name))
		}
		if err := checkText("node name", name, MaxHost); err != nil {
			return err
		}
		seen[name] = true
		size += len(name)
	}
	if size > MaxOrderNames {
		return fmt.Errorf("the names of the nodes take %d bytes; at most %d are allowed", size, MaxOrderNames)
	}
	return firstError(checkText("name of who asks", c.By, MaxOwner), checkText("action", c.Action, MaxOrderAction))
}

func (c OrderReport) validate() error {
	switch {
	case c.Order == 0:
		return errOrderNone
	case c.State == PartPreparing || c.State > PartThawed || c.Cause > ThawLocal, c.Cause == ThawGone, (c.State == PartThawed) != (c.Cause != ThawNone):
		return errOrderState
	case c.Took > MaxOrderTimeout:
		return errOrderTimeout
	}
	return checkText("report", c.Text, MaxOrderText)
}

func (c OrderEnd) validate() error {
	switch {
	case c.Order == 0:
		return errOrderNone
	case c.Reason != OrderThawed && c.Reason != OrderRequester && c.Reason != OrderNodeAway:
		return errOrderReason
	case c.Reason != OrderRequester && c.By == "":
		return errOrderBy
	}
	return checkText("name of who asks", c.By, MaxOwner)
}
