package fsm

import (
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// apply carries out commands of no node, one an entry, at the time that it is.
func apply(m *Machine, commands ...Command) (out Outcome) {
	for _, c := range commands {
		out = m.Apply(Entry{Now: m.Now(), Proposals: []Proposal{{Command: c}}})
	}
	return out
}

func TestViews(t *testing.T) {
	m := New()
	if _, ok := m.NextDeadline(); ok {
		t.Error("an empty table has a deadline")
	}
	p := Process{Host: "h", PID: 7}
	apply(m,
		Acquire{Owner: "r1", Locks: []string{"a"}, Mode: Shared, Limit: 70},
		Acquire{Owner: "r2", Locks: []string{"a"}, Mode: Shared, Limit: 50, Autounlock: true, Process: p},
		Acquire{Owner: "w1", Locks: []string{"a"}, Block: true, Autounlock: true, Process: p},
		Acquire{Owner: "w2", Locks: []string{"b", "a"}, Choice: All, Block: true},
	)
	if at, ok := m.NextDeadline(); !ok || at != 51 {
		t.Errorf("next deadline %d, %v", at, ok)
	}
	var holders, queue []string
	for _, h := range m.Holders("a") {
		holders = append(holders, h.Owner)
	}
	for w := range m.Queue("a") {
		queue = append(queue, w.Request.Owner)
	}
	if !slices.Equal(holders, []string{"r1", "r2"}) || !slices.Equal(queue, []string{"w1", "w2"}) {
		t.Errorf("holders %v, queue %v", holders, queue)
	}
	for range m.Queue("a") {
		break
	}
	for w := range m.Queue("none") {
		t.Errorf("%+v waits for nothing", w)
	}
	if m.Holders("b") != nil || m.Holders("none") != nil || m.QueueLen("a") != 2 || m.QueueLen("none") != 0 {
		t.Error("wrong holders or queue lengths")
	}
	if holds, waits := m.ByProcess("h", 7); len(holds) != 1 || len(waits) != 1 || holds[0].Owner != "r2" {
		t.Errorf("by process: %v, %v", holds, waits)
	}
	if holds, waits := m.ByProcess("none", 7); holds != nil || waits != nil {
		t.Error("an unknown host has claims")
	}
	want := Counts{Locks: 2, Holds: 2, Waits: 2, Fence: 2, Ticket: 2}
	if c := m.Counts(); c != want {
		t.Errorf("counts %+v", c)
	}
	// The views of b: waited for, not held.
	if r := m.Status("x", []string{"b"}); r.Code != Done {
		t.Errorf("status of a lock that is not held: %+v", r)
	}
}

// TestSnapshotIsCanonical gives the same requests to two tables in which maps and
// slices have a different past, and expects the same bytes.
func TestSnapshotIsCanonical(t *testing.T) {
	a, b := New(), New()
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprint("n", i))
	}
	hold := func(m *Machine, name string) {
		apply(m, Acquire{Owner: "o", Locks: []string{name}, Autounlock: true, Process: Process{Host: "h", PID: 1}})
	}
	for _, n := range names {
		hold(a, n)
		hold(b, n)
	}
	// In a, the first hundred go in order; in b in another one. The rest stays.
	for i := range 100 {
		apply(a, Release{Owner: "o", Locks: names[i : i+1]})
	}
	for _, i := range rand.New(rand.NewSource(1)).Perm(100) {
		apply(b, Release{Owner: "o", Locks: names[i : i+1]})
	}
	if !slices.Equal(encode(t, a), encode(t, b)) || a.Digest() != b.Digest() {
		t.Error("equal tables differ in bytes")
	}
	apply(b, Release{Owner: "o", Locks: names[150:151]})
	if a.Digest() == b.Digest() {
		t.Error("different tables have one digest")
	}
	x, _ := a.OnHost("h")
	y := a.Snapshot().Holds()
	if len(x) != 100 || len(y) != 100 || !slices.IsSortedFunc(x, func(a, b *Hold) int { return int(a.Fence) - int(b.Fence) }) ||
		!slices.IsSortedFunc(y, func(a, b *Hold) int { return strings.Compare(a.Locks[0], b.Locks[0]) }) {
		t.Error("views are not sorted")
	}
}

// TestSnapshotStays takes snapshots while the table goes on: what they say must
// not change.
func TestSnapshotStays(t *testing.T) {
	m, s := New(), &script{b: randomBytes(5, 4000)}
	apply(m, NodeJoin{Name: "n", Nonce: [16]byte{1}}, NodeJoin{Name: "n", Nonce: [16]byte{2}})
	type kept struct {
		snapshot *Snapshot
		bytes    []byte
	}
	var all []kept
	for i := 0; !s.done(); i++ {
		m.Apply(s.entry())
		if i%10 == 0 {
			all = append(all, kept{m.Snapshot(), encode(t, m)})
		}
	}
	for i, k := range all {
		var b []byte
		if err := k.snapshot.Encode(func(chunk []byte) error { b = append(b, chunk...); return nil }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(b, k.bytes) {
			t.Fatalf("snapshot %d has changed since", i)
		}
	}
	if all[3].snapshot.Now() == m.Now() {
		t.Error("time did not pass; the test shows nothing")
	}
}

func TestEncodeInChunks(t *testing.T) {
	m := New()
	apply(m, NodeJoin{Name: "n", Nonce: [16]byte{1}})
	name := strings.Repeat("x", 1000)
	for i := range 300 {
		c := Acquire{Owner: name, Locks: []string{fmt.Sprint(name, i%200)}, Block: true, ID: RequestID{byte(i), 1}}
		m.Apply(Entry{Proposals: []Proposal{{Ask: Ask{1, uint64(i)}, Command: c}}})
	}
	total := len(encode(t, m))
	stop := errors.New("disk full")
	for fail := range total/chunkSize + 1 {
		n := 0
		err := m.Snapshot().Encode(func(b []byte) error {
			if len(b) > chunkSize+MaxCommand {
				t.Errorf("a chunk of %d bytes", len(b))
			}
			if n++; n > fail {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) || n != fail+1 {
			t.Errorf("failed at chunk %d: %d chunks, %v", fail, n, err)
		}
	}
}

// TestRestoreRefuses damages snapshots, with a correct checksum and without.
func TestRestoreRefuses(t *testing.T) {
	m := sound(t)
	good := encode(t, m)
	first := len(good) - 4 - len(appendRemoved(nil, m.removed)) // where the first snapshots ended
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 0x40
		if _, err := Restore(b); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if m, err := Restore(seal(b[:len(b)-4])); err == nil {
			mustCheck(t, m) // what is left may make sense too
		}
		if _, err := Restore(good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
		if i > len(magic)+5 && i < len(good)-4 && i != first {
			if _, err := Restore(seal(good[:i])); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut to %d bytes: %v", i, err)
			}
		}
	}
	newer := slices.Clone(good)
	newer[len(magic)] = versionSuspended + 1
	if _, err := Restore(newer); !errors.Is(err, ErrNewer) {
		t.Errorf("later version: %v", err)
	}
	// Who cannot read suspensions is to say that, and not that the disk is broken.
	for _, v := range [...]struct {
		b    []byte
		want byte
	}{{good, version}, {encode(t, suspended(t)), versionSuspended}} {
		if v.b[len(magic)] != v.want {
			t.Errorf("version %d of a snapshot; want %d", v.b[len(magic)], v.want)
		}
		other := slices.Clone(v.b[:len(v.b)-4])
		other[len(magic)] = version + versionSuspended - v.want
		if _, err := Restore(seal(other)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("version %d for %d: %v", other[len(magic)], v.want, err)
		}
	}

	hold := func(f Fence, owner string, ask Ask, locks ...string) *Hold {
		return &Hold{Fence: f, Owner: owner, Ask: ask, Locks: locks}
	}
	wait := func(n Ticket, owner string, ask Ask, locks ...string) *Wait {
		return &Wait{Ticket: n, Ask: ask, Request: Acquire{Owner: owner, Locks: locks, Block: true}}
	}
	one := []memory{{node: Node{Incarnation: 1, Name: "n", Nonce: [16]byte{1}}}}
	for _, tc := range []struct {
		want string
		s    rawTable
	}{
		{"", rawTable{fence: 1, ticket: 1, holds: []*Hold{hold(1, "o", Ask{}, "a")}, waits: []*Wait{wait(1, "p", Ask{}, "a")}}},
		{"fence 1 after 1", rawTable{fence: 1, holds: []*Hold{hold(1, "o", Ask{}, "a"), hold(1, "p", Ask{}, "b")}}},
		{"ticket 1 after 1", rawTable{ticket: 1, fence: 1, holds: []*Hold{hold(1, "o", Ask{}, "a")}, waits: []*Wait{wait(1, "p", Ask{}, "a"), wait(1, "q", Ask{}, "a")}}},
		{"fence 0 after 0", rawTable{holds: []*Hold{hold(0, "o", Ask{}, "a")}}},
		{"turn of \"ann\"", rawTable{turns: []turn{{who: claimant{owner: "ann"}}, {who: claimant{owner: "ann"}}}}},
		{"turn of \"ann\"", rawTable{turns: []turn{{who: claimant{owner: "ann"}, at: 1}}}},
		{"I13: 2 servers", rawTable{removed: []RemoveServer{{ID: "a"}, {ID: "a"}}}},
		{"I13: no server", rawTable{removed: []RemoveServer{{Name: "a"}}}},
		{"removed servers 1025", rawTable{removed: make([]RemoveServer, maxRemoved+1)}},
		{"two claims of one claimant", rawTable{fence: 2, holds: []*Hold{hold(1, "o", Ask{}, "a"), hold(2, "o", Ask{}, "a")}}},
		{"two claims of one claimant", rawTable{fence: 1, ticket: 1, holds: []*Hold{hold(1, "o", Ask{}, "a")}, waits: []*Wait{wait(1, "o", Ask{}, "a")}}},
		{"two claims of one request", rawTable{incarnation: 1, sessions: one, fence: 2, holds: []*Hold{hold(1, "o", Ask{1, 1}, "a"), hold(2, "p", Ask{1, 1}, "b")}}},
		{"a claim on no lock", rawTable{fence: 1, holds: []*Hold{hold(1, "o", Ask{})}}},
		{"a claim on no lock", rawTable{ticket: 1, waits: []*Wait{wait(1, "o", Ask{})}}},
		{"I1:", rawTable{fence: 2, holds: []*Hold{hold(1, "o", Ask{}, "a"), hold(2, "p", Ask{}, "a")}}},
		{"I4:", rawTable{ticket: 1, waits: []*Wait{wait(1, "o", Ask{}, "a")}}},
		{"I2:", rawTable{sessions: one}},
		{"lock name", rawTable{fence: 1, holds: []*Hold{hold(1, "o", Ask{}, "a b")}}},
	} {
		var b []byte
		if err := tc.s.snapshot().Encode(func(chunk []byte) error { b = append(b, chunk...); return nil }); err != nil {
			t.Fatal(err)
		}
		_, err := Restore(b)
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

// rawTable makes snapshots that no table would.
type rawTable struct {
	fence       Fence
	ticket      Ticket
	incarnation Incarnation
	sessions    []memory
	holds       []*Hold
	waits       []*Wait
	turns       []turn
	removed     []RemoveServer
}

func (r rawTable) snapshot() *Snapshot {
	holds, waits := newRoll[Hold](), newRoll[Wait]()
	for i, h := range r.holds {
		holds.add(uint64(i), h, &claim{})
	}
	for i, w := range r.waits {
		waits.add(uint64(i), w, &claim{})
	}
	return &Snapshot{
		fence: r.fence, ticket: r.ticket, incarnation: r.incarnation, sessions: r.sessions,
		holds: holds.share(), waits: waits.share(), turns: r.turns, removed: r.removed,
	}
}

func TestBounds(t *testing.T) {
	m := New()
	apply(m, NodeJoin{Name: "n", Nonce: [16]byte{1}})
	ask := func(seq uint64, c Command) Result {
		return m.Apply(Entry{Proposals: []Proposal{{Ask: Ask{1, seq}, Command: c}}}).Results[0]
	}
	for seq := range uint64(maxAnswers - 2) {
		ask(seq, Tick{})
	}
	// Withdrawing what has not come needs two answers.
	if r := ask(maxAnswers+1, Withdraw{Ask{1, maxAnswers + 2}}); r.Code != Done {
		t.Errorf("got %+v", r)
	}
	if r := ask(maxAnswers+9, Acquire{Owner: "o", Locks: []string{"a"}}); r.Code != Refused || m.Counts().Holds != 0 {
		t.Errorf("beyond the bound: %+v, %+v", r, m.Counts())
	}
	if r := apply(m, Withdraw{Ask{1, maxAnswers + 20}}).Results[0]; r.Code != Refused {
		t.Errorf("beyond the bound: %+v", r)
	}
	mustCheck(t, m)
	r := m.Apply(Entry{Proposals: []Proposal{{Ask: Ask{1, maxAnswers + 9}, Floor: 10, Command: Tick{}}}}).Results[0]
	if r.Code != Done {
		t.Errorf("after the floor has passed some: %+v", r)
	}

	for i := range maxSessions {
		apply(m, NodeJoin{Name: "n", Nonce: [16]byte{2, byte(i), byte(i >> 8), byte(i >> 16)}})
		if i == 2000 { // joining takes longer the more there are: put the others in directly
			for m.incarnation < maxSessions {
				m.incarnation++
				m.addSession(Node{Incarnation: m.incarnation, Name: "n", Nonce: [16]byte{3, byte(i), byte(m.incarnation), byte(m.incarnation >> 8)}})
			}
			break
		}
	}
	if r := apply(m, NodeJoin{Name: "n", Nonce: [16]byte{4}}).Results[0]; r.Code != Refused {
		t.Errorf("beyond the bound: %+v", r)
	}
}

// TestMassRelease releases more than an answer can name: the result is cut, and
// can be decoded; the events are complete.
func TestMassRelease(t *testing.T) {
	m := New()
	for i := range 3000 {
		owner := fmt.Sprint("o", i)
		name := fmt.Sprint(strings.Repeat("x", 500), i)
		apply(m, Acquire{Owner: owner, Locks: []string{"all", name}, Choice: All, Mode: Shared})
	}
	out := apply(m, Break{Locks: []string{"all"}, By: "root"})
	r := out.Results[0]
	if len(out.Events) != 3000 || len(r.Broken) != maxResultNames || len(r.Locks) > 200 {
		t.Errorf("%d events, %d broken, %d locks", len(out.Events), len(r.Broken), len(r.Locks))
	}
	back, _, err := DecodeResult(AppendResult(nil, r))
	if err != nil || !reflect.DeepEqual(back, r) {
		t.Error(err)
	}
	mustCheck(t, m)
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", MaxOwner+1)
	for _, tc := range []struct {
		c    Command
		want string
	}{
		{nil, "not a command"},
		{&Acquire{}, "not a command"},
		{Acquire{}, "no lock is named"},
		{Acquire{Locks: []string{"a"}, Choice: 2}, "choice 2 is not known"},
		{Acquire{Locks: []string{"a"}, Mode: 3}, "mode 3 is not known"},
		{Acquire{Locks: []string{"a"}, Mode: Slots}, "slots mode needs a number of slots, 1 or more"},
		{Acquire{Locks: []string{"a"}, Slots: 2}, "a number of slots goes with slots mode only"},
		{Acquire{Locks: []string{"a", "a"}}, `lock "a" is named twice`},
		{Acquire{Locks: make([]string, 65)}, "65 locks are named; at most 64 can be"},
		{Acquire{Locks: []string{""}}, "a lock's name is empty"},
		{Acquire{Locks: []string{"a b"}}, `lock name "a b" has white space or control characters`},
		{Acquire{Locks: []string{long}}, `lock name "` + long[:61] + `..." is 1025 bytes long; at most 1024 are allowed`},
		{Acquire{Locks: []string{"a"}, Owner: long}, "the owner is 1025 bytes long; at most 1024 are allowed"},
		{Acquire{Locks: []string{"a"}, Owner: "a\nb"}, `the owner "a\nb" has control characters`},
		{Acquire{Locks: []string{"a"}, Process: Process{PID: -4}}, "the process id is negative"},
		{Acquire{Locks: []string{"a"}, Owner: "ann at home", Limit: 1<<64 - 1}, ""},
		{Release{Locks: []string{""}}, "a lock's name is empty"},
		{Release{}, ""},
		{Break{By: "\x00"}, `the name of who breaks "\x00" has control characters`},
		{ProcessGone{}, "no process is named"},
		{ProcessGone{Process: Process{Host: "h", PID: 1}, Fences: make([]Fence, MaxNamed+1)}, "more than 4096 holds or waits of one process"},
		{Renew{Owner: "ann"}, "no fence is given"},
		{NodeJoin{Nonce: [16]byte{1}}, "a node needs a name to join"},
		{NodeJoin{Name: "n"}, "a node needs a nonce to join"},
		{NodeGone{}, ""},
		{NodesAway{Nodes: []Incarnation{7}}, ""},
		{NodesAway{Nodes: make([]Incarnation, MaxNamed+1)}, "more than 4096 nodes"},
		{NodesBack{Nodes: make([]Incarnation, MaxNamed+1)}, "more than 4096 nodes"},
		{RemoveServer{}, "no server is named"},
	} {
		got := ""
		if err := Validate(tc.c); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.c, got, tc.want)
		}
		m := New()
		if r := apply(m, tc.c).Results[0]; (r.Code == Refused) != (tc.want != "") || r.Reason != tc.want {
			t.Errorf("%+v: the table says %+v", tc.c, r)
		}
		mustCheck(t, m)
	}
}

func TestWords(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"slots": Slots, "stale": Stale, "superseded": Superseded, "node": CauseNodeGone, "unknown": Code(99),
	} {
		if got.String() != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}
