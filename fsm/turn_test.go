package fsm

import (
	"encoding/binary"
	"testing"
)

func turnID(i int) (id RequestID) {
	binary.BigEndian.PutUint32(id[:], uint32(i)+1)
	return id
}

// TestTurnsAreBounded: of too many claimants that count, the longest silent are forgotten.
func TestTurnsAreBounded(t *testing.T) {
	m := New()
	ask := func(i int, turn uint64) Code {
		return m.Apply(Entry{Now: m.Now() + 1, Proposals: []Proposal{{Command: Acquire{
			Owner: "ann", ID: turnID(i), Turn: turn, Locks: []string{"a"},
		}}}}).Results[0].Code
	}
	ask(-1, 0) // has the lock, so that all others are told Busy
	const beyond = 100
	for i := range maxTurns + beyond {
		ask(i, 2)
		if i%10 == 0 {
			ask(0, uint64(i)+3) // not silent: it stays
		}
	}
	mustCheck(t, m)
	if n := len(m.turns.live); n != maxTurns {
		t.Errorf("%d turns are remembered", n)
	}
	for _, tc := range []struct {
		i    int
		turn uint64
		want Code
	}{
		{0, 2, Superseded},
		{beyond / 2, 1, Busy},
		{maxTurns, 1, Superseded},
		{maxTurns + beyond - 1, 1, Superseded},
	} {
		if got := ask(tc.i, tc.turn); got != tc.want {
			t.Errorf("claimant %d, turn %d: %v, not %v", tc.i, tc.turn, got, tc.want)
		}
	}
}

// TestTurnsOfOneClaimant: one that counts for long takes no more room than others.
func TestTurnsOfOneClaimant(t *testing.T) {
	m := New()
	for i := range 100_000 {
		m.Apply(Entry{Proposals: []Proposal{{Command: Acquire{Owner: "ann", ID: turnID(i % 2), Turn: uint64(i) + 2, Locks: []string{"a"}}}}})
	}
	mustCheck(t, m)
	if n := len(m.turns.list); n > 100 || len(m.turns.live) != 2 {
		t.Errorf("%d entries for %d claimants", n, len(m.turns.live))
	}
}

// TestTurnsInSnapshot: a table that was restored remembers and forgets as the first.
func TestTurnsInSnapshot(t *testing.T) {
	m := New()
	acquire := func(now Millis, i int, turn uint64) Entry {
		return Entry{Now: now, Proposals: []Proposal{{Command: Acquire{Owner: "ann", ID: turnID(i), Turn: turn, Locks: []string{"a"}, Block: true}}}}
	}
	for i := range 200 {
		m.Apply(acquire(Millis(i), i%70, uint64(i)+2))
	}
	m.Apply(Entry{Now: 300, Proposals: []Proposal{{Command: Release{Owner: "ann", ID: turnID(99), Locks: []string{"a"}}}}})
	again, err := Restore(encode(t, m))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []Entry{
		acquire(400, 99, 7), acquire(400, 69, 3), acquire(400, 69, 1000), acquire(400, 0, 1),
		acquire(turnSpan+150, 1, 2), acquire(turnSpan+150, 30, 2), acquire(turnSpan+299, 99, 1), acquire(turnSpan+300, 99, 1),
	} {
		if a, b := m.Apply(e).Results[0].Code, again.Apply(e).Results[0].Code; a != b {
			t.Errorf("%+v: %v, and %v when restored", e, a, b)
		}
		mustCheck(t, again)
		if m.Digest() != again.Digest() {
			t.Errorf("%+v: the tables differ", e)
		}
	}
}
