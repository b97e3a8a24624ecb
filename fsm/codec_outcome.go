package fsm

import (
	"encoding/binary"
	"fmt"
	"math"
)

// maxOutcome bounds the encoding of one result or event.
const maxOutcome = 512 << 10

// resultOfOrder is set beside a result's code where an order's id follows the rest.
const resultOfOrder = 0x80

// AppendResult appends the encoding of r, which knows its own length:
//
//	version, uvarint length, fields
func AppendResult(dst []byte, r Result) []byte {
	dst = append(dst, version)
	start := len(dst)
	return prefixLen(appendResult(dst, r), start)
}

// DecodeResult reads one result from the front of b and returns the rest.
func DecodeResult(b []byte) (Result, []byte, error) {
	r := &reader{b: b}
	r.version()
	body := r.sub(maxOutcome, "result")
	v := body.result()
	if err := body.end(); err != nil {
		return Result{}, nil, fmt.Errorf("reading a result: %w", err)
	}
	return v, r.b, nil
}

func appendResult(b []byte, r Result) []byte {
	code := byte(r.Code)
	if r.Order != 0 {
		code |= resultOfOrder
	}
	b = append(b, code)
	b = binary.AppendUvarint(b, uint64(r.Fence))
	b = appendStrings(b, r.Locks)
	b = appendString(b, r.Owner)
	b = binary.AppendUvarint(b, uint64(r.Ticket))
	b = binary.AppendUvarint(b, uint64(r.Place))
	b = appendStrings(b, r.Broken)
	b = binary.AppendUvarint(b, uint64(len(r.Checks)))
	for _, c := range r.Checks {
		b = appendString(b, c.Lock)
		b = appendProcess(b, c.Process)
	}
	b = binary.AppendUvarint(b, uint64(r.Node))
	b = appendString(b, r.Reason)
	if r.Order != 0 {
		b = binary.AppendUvarint(b, uint64(r.Order))
	}
	return b
}

func (r *reader) result() Result {
	code := r.byte()
	v := Result{Code: Code(code &^ resultOfOrder)}
	if v.Code > Superseded {
		r.fail("result code %d", v.Code)
	}
	v.Fence = Fence(r.uvarint())
	v.Locks = r.texts("lock name")
	v.Owner = r.text(MaxOwner, "owner")
	v.Ticket = Ticket(r.uvarint())
	v.Place = int(r.upTo(math.MaxInt32, "place"))
	v.Broken = r.texts("owner")
	if n := r.count(MaxLocks, 5, "checks"); n > 0 {
		v.Checks = make([]Check, n)
		for i := range v.Checks {
			v.Checks[i] = Check{Lock: r.text(MaxName, "lock name"), Process: r.process()}
		}
	}
	v.Node = Incarnation(r.uvarint())
	v.Reason = r.text(MaxReason, "reason")
	if code&resultOfOrder != 0 {
		if v.Order = OrderID(r.uvarint()); v.Order == 0 {
			r.fail("order 0")
		}
	}
	return v
}

// AppendEvent appends the encoding of e, which knows its own length:
//
//	version, kind, uvarint length, fields
//
// An order has to be that of one node ([Order.For]), or it may be too long to be read.
func AppendEvent(dst []byte, e Event) []byte {
	dst = append(dst, version, byte(e.Kind))
	start := len(dst)
	dst = appendAsk(dst, e.Ask)
	dst = appendBool(dst, e.Waited)
	dst = appendString(dst, e.Owner)
	dst = appendID(dst, e.ID)
	dst = appendStrings(dst, e.Locks)
	dst = binary.AppendUvarint(dst, uint64(e.Fence))
	dst = binary.AppendUvarint(dst, uint64(e.Ticket))
	dst = append(dst, byte(e.Mode))
	dst = appendProcess(dst, e.Process)
	dst = appendBool(dst, e.Autounlock)
	dst = append(dst, byte(e.Cause))
	dst = appendString(dst, e.By)
	dst = binary.AppendUvarint(dst, uint64(e.At))
	if e.Order != nil {
		dst = appendOrder(dst, e.Order)
	}
	if e.Kind == EventSuspended {
		dst = appendString(dst, e.Context)
	}
	return prefixLen(dst, start)
}

// DecodeEvent reads one event from the front of b and returns the rest.
func DecodeEvent(b []byte) (Event, []byte, error) {
	r := &reader{b: b}
	r.version()
	e := Event{Kind: EventKind(r.byte())}
	switch {
	case r.err != nil:
	case e.Kind > EventSuspended:
		r.err = fmt.Errorf("%w (event kind %d is not known here)", ErrNewer, e.Kind)
	case e.Kind == 0:
		r.fail("event kind 0")
	}
	body := r.sub(maxOutcome, "event")
	e.Ask = body.ask()
	e.Waited = body.bool()
	e.Owner = body.text(MaxOwner, "owner")
	e.ID = body.id()
	e.Locks = body.names()
	e.Fence = Fence(body.uvarint())
	e.Ticket = Ticket(body.uvarint())
	e.Mode = body.mode()
	e.Process = body.process()
	e.Autounlock = body.bool()
	e.Cause = Cause(body.byte())
	if e.Cause > CauseResumed {
		body.fail("cause %d", e.Cause)
	}
	e.By = body.text(MaxOwner, "name of who breaks")
	e.At = body.millis()
	if e.OfOrder() {
		e.Order = body.order()
	}
	if e.Kind == EventSuspended {
		e.Context = body.text(MaxContext, "context")
	}
	if err := body.end(); err != nil {
		return Event{}, nil, fmt.Errorf("reading an event: %w", err)
	}
	return e, r.b, nil
}
