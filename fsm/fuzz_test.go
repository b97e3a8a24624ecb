package fsm

import (
	"bytes"
	"errors"
	"math/rand"
	"reflect"
	"testing"
)

func encode(t testing.TB, m *Machine) []byte {
	t.Helper()
	var b bytes.Buffer
	err := m.Snapshot().Encode(func(chunk []byte) error {
		b.Write(chunk)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func randomBytes(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

// busyTable returns a table in which much goes on, and the entries that made it.
func busyTable(seed int64) (*Machine, []Entry) {
	m, s := New(), &script{b: randomBytes(seed, 1500)}
	s.table = m
	entries := []Entry{{Proposals: []Proposal{
		{Command: NodeJoin{Name: "n1", Nonce: [16]byte{1}}},
		{Command: NodeJoin{Name: "n2", Nonce: [16]byte{2}}},
	}}}
	m.Apply(entries[0])
	for !s.done() {
		e := s.entry()
		m.Apply(e)
		entries = append(entries, e)
	}
	return m, entries
}

// FuzzApply drives two replicas, of which one is replaced by what its snapshot
// restores after every entry: they must agree in everything they say.
func FuzzApply(f *testing.F) {
	for seed := range int64(4) {
		f.Add(randomBytes(seed, 400))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2000 {
			return
		}
		s, m, other := &script{b: b}, New(), New()
		s.table = m
		for !s.done() {
			e := s.entry()
			got, want := m.Apply(e), other.Apply(recode(t, e))
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v\n got %+v\nwant %+v", e, got, want)
			}
			mustCheck(t, m)
			before := encode(t, other)
			restored, err := Restore(before)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, encode(t, restored)) || m.Digest() != restored.Digest() {
				t.Fatal("the restored table differs")
			}
			other = restored
			for _, r := range got.Results {
				if back, rest, err := DecodeResult(AppendResult(nil, r)); err != nil || len(rest) > 0 || !reflect.DeepEqual(back, r) {
					t.Fatalf("%+v became %+v, %v", r, back, err)
				}
			}
			for _, v := range got.Events {
				if back, rest, err := DecodeEvent(AppendEvent(nil, v)); err != nil || len(rest) > 0 || !reflect.DeepEqual(back, v) {
					t.Fatalf("%+v became %+v, %v", v, back, err)
				}
			}
		}
	})
}

// wantDecodeError fails unless err is one of the two that decoders return.
func wantDecodeError(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
		t.Fatalf("unexpected error: %v", err)
	}
}

// The decoders accept nothing but what the encoders write: whatever they accept
// is encoded to the same bytes again. And whatever they accept can be applied.

func FuzzDecodeEntry(f *testing.F) {
	_, entries := busyTable(1)
	for _, e := range entries[:20] {
		f.Add(AppendEntry(nil, e))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			wantDecodeError(t, err)
			return
		}
		if again := AppendEntry(nil, e); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
		m, _ := busyTable(2)
		m.Apply(e)
		mustCheck(t, m)
	})
}

func FuzzDecodeProposal(f *testing.F) {
	_, entries := busyTable(1)
	for _, e := range entries[:20] {
		f.Add(AppendProposal(nil, e.Proposals[0]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, rest, err := DecodeProposal(b)
		if err != nil {
			wantDecodeError(t, err)
			return
		}
		if again := append(AppendProposal(nil, p), rest...); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	f.Add(AppendResult(nil, fullResult()))
	f.Add(AppendResult(nil, Result{}))
	f.Add(AppendResult(nil, Result{Order: 300}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := DecodeResult(b)
		if err != nil {
			wantDecodeError(t, err)
			return
		}
		if again := append(AppendResult(nil, r), rest...); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add(AppendEvent(nil, fullEvent()))
	f.Add(AppendEvent(nil, Event{Kind: EventQueued}))
	f.Add(AppendEvent(nil, fullOrderEvent(f)))
	f.Add(AppendEvent(nil, fullSuspended()))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, rest, err := DecodeEvent(b)
		if err != nil {
			wantDecodeError(t, err)
			return
		}
		if again := append(AppendEvent(nil, e), rest...); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

// FuzzRestore corrects the checksum, or the fuzzer would never get past it.
func FuzzRestore(f *testing.F) {
	for seed := range int64(3) {
		m, _ := busyTable(seed)
		b := encode(f, m)
		f.Add(b[:len(b)-4])
	}
	for _, m := range [...]*Machine{ordered(f), suspended(f)} {
		b := encode(f, m)
		f.Add(b[:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b := seal(body)
		m, err := Restore(b)
		if err != nil {
			wantDecodeError(t, err)
			return
		}
		if !bytes.Equal(encode(t, m), b) {
			t.Fatal("the restored table is encoded otherwise")
		}
		s := &script{b: randomBytes(1, 60)}
		for !s.done() {
			m.Apply(s.entry())
			mustCheck(t, m)
		}
	})
}
