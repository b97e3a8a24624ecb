package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
)

// ordered returns a table with an order in every state.
func ordered(t testing.TB) *Machine {
	t.Helper()
	m := New()
	for i := range 3 {
		apply(m, NodeJoin{Name: fmt.Sprint("n", i+1), Nonce: [16]byte{byte(i + 1)}})
	}
	apply(m, Acquire{Owner: "ann", Locks: []string{"a"}})
	open := func(nonce byte, nodes ...string) {
		c := OrderOpen{
			Nonce: [16]byte{nonce}, By: "root@h", Action: "freeze", Spec: []byte("{}"), Nodes: nodes, AllNodes: len(nodes) == 0,
			Timeout: 50, Fence: 1, ReleaseLock: nonce == 9,
		}
		if r := apply(m, c).Results[0]; r.Code != Done {
			t.Fatalf("%+v", r)
		}
	}
	open(1)
	open(2, "n1", "n2")
	open(3, "n1")
	open(4, "n2", "n3")
	open(5, "n1")
	for _, c := range []Command{
		OrderReport{Order: 1, Node: 1, State: PartReady},
		OrderReport{Order: 2, Node: 1, State: PartReady},
		OrderReport{Order: 2, Node: 2, State: PartReady},
		OrderReport{Order: 2, Node: 2, State: PartFrozen, Text: "3 processes", Took: 5},
		OrderReport{Order: 3, Node: 1, State: PartReady},
		OrderReport{Order: 3, Node: 1, State: PartFrozen},
		OrderReport{Order: 4, Node: 2, State: PartFailed, Text: "no"},
		OrderReport{Order: 5, Node: 1, State: PartReady},
		OrderReport{Order: 5, Node: 1, State: PartThawed, Cause: ThawQuorum},
	} {
		m.Apply(Entry{Now: m.Now() + 1, Proposals: []Proposal{{Command: c}}})
	}
	mustCheck(t, m)
	for i, want := range []OrderState{OrderPreparing, OrderFreezing, OrderFrozen, OrderThawing, OrderClosed} {
		if o := m.Order(OrderID(i + 1)); o == nil || o.State != want {
			t.Fatalf("order %d is %+v", i+1, o)
		}
	}
	return m
}

func fullOrderEvent(t testing.TB) Event {
	o := ordered(t).Order(2)
	return Event{Kind: EventOrderFreezing, By: o.By, At: 7, Order: o.For(2)}
}

// TestCheckFindsOrders damages a ledger of orders in one place at a time.
func TestCheckFindsOrders(t *testing.T) {
	edit := func(id OrderID, f func(o *Order)) func(m *Machine) {
		return func(m *Machine) {
			o := m.Order(id)
			for i, p := range o.Parts {
				again := *p
				o.Parts[i] = &again
			}
			f(o)
		}
	}
	for name, tc := range map[string]struct {
		want   string
		damage func(m *Machine)
	}{
		"two of one id":       {"I14", edit(2, func(o *Order) { o.ID = 1 })},
		"one that is to come": {"I14", func(m *Machine) { m.orders.last = 4 }},
		"two of one nonce":    {"I14", edit(5, func(o *Order) { o.Nonce[0] = 1 })},
		"closed among open":   {"I14", edit(4, func(o *Order) { o.State = OrderClosed })},
		"open among closed":   {"I14", edit(5, func(o *Order) { o.State = OrderThawing })},
		"nobody's":            {"I14", edit(1, func(o *Order) { o.By = "" })},
		"too many": {"I14", func(m *Machine) {
			for range MaxClosed {
				m.orders.closed = append(m.orders.closed, m.orders.closed[0])
			}
		}},
		"no parts":                  {"I15", edit(1, func(o *Order) { o.Parts = nil })},
		"ended for nothing":         {"I15", edit(4, func(o *Order) { o.Reason = OrderOpenStill })},
		"a reason, and not ended":   {"I15", edit(3, func(o *Order) { o.Reason = OrderThawed })},
		"all ready, and not on":     {"I15", edit(1, func(o *Order) { o.Parts[1].State, o.Parts[2].State = PartReady, PartReady })},
		"freezing too early":        {"I15", edit(2, func(o *Order) { o.Parts[0].State = PartPreparing })},
		"frozen but for one":        {"I15", edit(3, func(o *Order) { o.Parts[0].State = PartReady })},
		"all thawed, and not over":  {"I15", edit(4, func(o *Order) { o.Parts[1].State, o.Parts[1].Cause = PartThawed, ThawAsked })},
		"closed with a frozen node": {"I15", edit(5, func(o *Order) { o.Parts[0].State, o.Parts[0].Cause = PartFrozen, ThawNone })},
		"two parts of a node":       {"I15", edit(1, func(o *Order) { o.Parts[2].Node = 1 })},
		"thawed for nothing":        {"I15", edit(5, func(o *Order) { o.Parts[0].Cause = ThawNone })},
		"a node that is gone":       {"I16", edit(1, func(o *Order) { o.Parts[1].Node = 77 })},
		"a node that is away":       {"I16", func(m *Machine) { m.session(3).node.Away = true }},
		"a hold that is over":       {"I16", edit(1, func(o *Order) { o.Fence = 77 })},
		"a requester that is gone":  {"I16", edit(1, func(o *Order) { o.Requester = 77 })},
		"overdue":                   {"I17", func(m *Machine) { m.now += 100 }},
		"of the future":             {"I17", edit(4, func(o *Order) { o.Ended = m100 })},
	} {
		t.Run(name, func(t *testing.T) {
			m := ordered(t)
			tc.damage(m)
			if err := m.Check(); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

const m100 = Millis(100)

// TestOrdersAreBounded: of too many open ones the next is refused; of too many closed
// ones the oldest are forgotten; and what was captured before stays as it was.
func TestOrdersAreBounded(t *testing.T) {
	m := ordered(t)
	before := m.Snapshot()
	var was bytes.Buffer
	keep := func(b []byte) error { was.Write(b); return nil }
	if err := before.Encode(keep); err != nil {
		t.Fatal(err)
	}
	next := func(i int) Result {
		return apply(m, OrderOpen{Nonce: [16]byte{1, byte(i), byte(i >> 8)}, By: "b", Action: "a", AllNodes: true}).Results[0]
	}
	open, _ := m.Orders()
	for i := len(open); i < MaxOpenOrders; i++ {
		if r := next(i); r.Code != Done {
			t.Fatalf("%+v", r)
		}
	}
	if r := next(1000); r.Code != Refused || !strings.Contains(r.Reason, "64 orders are open") {
		t.Errorf("%+v", r)
	}
	for i := range 3 {
		apply(m, NodeGone{Node: Incarnation(i + 1)})
	}
	mustCheck(t, m)
	apply(m, NodeJoin{Name: "n1", Nonce: [16]byte{7}})
	for i := range MaxClosed {
		id := next(2000 + i).Order
		apply(m, OrderReport{Order: id, Node: 4, State: PartFailed, Text: "no"})
	}
	mustCheck(t, m)
	open, closed := m.Orders()
	if len(open) != 0 || len(closed) != MaxClosed || closed[0].Parts[0].Node != 4 {
		t.Errorf("%d open, %d closed", len(open), len(closed))
	}
	var is bytes.Buffer
	keep = func(b []byte) error { is.Write(b); return nil }
	if err := before.Encode(keep); err != nil || !bytes.Equal(was.Bytes(), is.Bytes()) {
		t.Errorf("a snapshot has changed, or %v", err)
	}
}

// TestOrdersInSnapshot: a table that was restored goes on as the first, whichever other
// parts its snapshot has.
func TestOrdersInSnapshot(t *testing.T) {
	for name, before := range map[string][]Command{
		"alone":             nil,
		"with removed ones": {RemoveServer{ID: "x"}},
		"with all":          {NodeJoin{Name: "n9", Nonce: [16]byte{99}}, NodesAway{Nodes: []Incarnation{4}}, RemoveServer{ID: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := ordered(t)
			for _, c := range before {
				apply(m, c)
			}
			again, err := Restore(encode(t, m))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []Command{
				OrderReport{Order: 2, Node: 1, State: PartFrozen},
				OrderEnd{Order: 2, By: "b", Reason: OrderThawed},
				OrderOpen{Nonce: [16]byte{5}, By: "b", Action: "a", AllNodes: true},
				NodeGone{Node: 2},
			} {
				apply(m, c)
				apply(again, c)
				mustCheck(t, again)
				if m.Digest() != again.Digest() {
					t.Errorf("%T: the tables differ", c)
				}
			}
		})
	}
}

// TestOldSnapshot reads what was written before there were orders.
func TestOldSnapshot(t *testing.T) {
	b, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nsnapshot\n\t")
	line, _, _ := strings.Cut(rest, "\n")
	old, err := hex.DecodeString(line)
	if err != nil || len(old) == 0 {
		t.Fatal(err)
	}
	m, err := Restore(old)
	if err != nil {
		t.Fatal(err)
	}
	if open, closed := m.Orders(); len(open)+len(closed) > 0 {
		t.Error("it has orders")
	}
	if r := apply(m, OrderOpen{Nonce: [16]byte{1}, By: "b", Action: "a", AllNodes: true}).Results[0]; r.Order != 1 {
		t.Errorf("%+v", r)
	}
}

// TestBadOrdersInSnapshot: what would make too much memory or break an invariant.
func TestBadOrdersInSnapshot(t *testing.T) {
	good := encode(t, ordered(t))
	body := good[:len(good)-4]
	empty := encode(t, New())
	none := binary.AppendUvarint(append(bytes.Clone(empty[:len(empty)-4]), 0, 0), 0)
	for name, b := range map[string][]byte{
		"cut short":       seal(body[:len(body)-1]),
		"an empty ledger": seal(none),
		"a false count":   seal(append(none[:len(none)-1], 9, 0xff, 0xff, 3)),
	} {
		if _, err := Restore(b); err == nil {
			t.Errorf("%s: read", name)
		} else {
			wantDecodeError(t, err)
		}
	}
}

// TestOrderTimesAreBounded: no time of an order is so long that a clock, or a unit that it
// is told in, overflows.
func TestOrderTimesAreBounded(t *testing.T) {
	for _, c := range []Command{
		OrderOpen{Nonce: [16]byte{1}, By: "b", Action: "a", AllNodes: true, Timeout: MaxOrderTimeout},
		OrderReport{Order: 1, Node: 1, State: PartFrozen, Took: MaxOrderTimeout},
	} {
		if _, rest, err := DecodeProposal(AppendProposal(nil, Proposal{Command: c})); err != nil || len(rest) > 0 || Validate(c) != nil {
			t.Errorf("%+v: %v, %v", c, err, Validate(c))
		}
	}
	for _, over := range []Millis{MaxOrderTimeout + 1, math.MaxInt64 / 1_000_000, math.MaxInt64, math.MaxUint64} {
		for _, c := range []Command{
			OrderOpen{Nonce: [16]byte{1}, By: "b", Action: "a", AllNodes: true, Timeout: over},
			OrderOpen{Nonce: [16]byte{1}, By: "b", Action: "a", AllNodes: true, Within: over},
			OrderReport{Order: 1, Node: 1, State: PartFrozen, Took: over},
		} {
			if err := Validate(c); err == nil || !strings.Contains(err.Error(), "at most 365 days") {
				t.Errorf("%+v: %v", c, err)
			}
			if _, _, err := DecodeProposal(AppendProposal(nil, Proposal{Command: c})); err == nil {
				t.Errorf("%+v: decoded", c)
			}
		}
	}
}
