package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden encodings anew")

func seal(body []byte) []byte {
	sum := crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
	return binary.LittleEndian.AppendUint32(bytes.Clone(body), sum)
}

func fullProcess() Process {
	return Process{Host: "h1.example.org", PID: 4711, Start: 1 << 40, Boot: "6f0c"}
}

// fullCommands has one of every kind, with every field set.
func fullCommands() []Command {
	id := RequestID{1, 2, 3, 15: 16}
	return []Command{
		Acquire{
			Owner: "h1_4711_ann", ID: id, Turn: 300, Locks: []string{"a", "b/c"}, Choice: All, Mode: Slots, Slots: 300, Block: true,
			Limit: 30_000, Lease: 1 << 50, Process: fullProcess(), Autounlock: true,
		},
		Acquire{Locks: []string{"a"}},
		Release{Owner: "ann", ID: id, Locks: []string{"a"}, Fence: 1 << 60},
		Withdraw{Ask: Ask{Node: 3, Seq: 1 << 33}},
		Break{Locks: []string{"a", "b"}, By: "root on h2", Fence: 12},
		ProcessGone{Process: fullProcess(), Fences: []Fence{1, 1 << 63}, Tickets: []Ticket{2, 300}},
		Renew{Owner: "ann", Fence: 5, Attach: true},
		Tick{},
		NodeJoin{Name: "n1", Nonce: [16]byte{9, 15: 8}},
		NodeGone{Node: 200},
		NodesAway{Nodes: []Incarnation{1, 300}},
		NodesBack{Nodes: []Incarnation{1 << 40}},
		RemoveServer{ID: "6f0c", Name: "n2", Addr: "h2:1753", Out: true},
		Suspend{Fence: 300, By: "root@h1", Context: "/var/jobs/a b.ckpt", ContextID: "5f0c"},
		Suspend{Fence: 300, By: "root@h1", Ended: true},
		Resume{
			Fence: 300, ContextID: "5f0c", By: "root@h2", Owner: "h2_77_ann", ID: id, Limit: 30_000, Lease: 1 << 50, Process: fullProcess(), Autounlock: true,
		},
		OrderOpen{
			Nonce: [16]byte{1, 15: 2}, By: "root@h1", Action: "freeze", Spec: []byte(`{"a":"\n"}`), Nodes: []string{"n1", "n2"},
			Timeout: 60_000, Attached: true, Fence: 1 << 40, ReleaseLock: true,
		},
		OrderOpen{Nonce: [16]byte{1}, By: "root@h1", Action: "checkpoint", AllNodes: true, Within: 600_000},
		OrderReport{Order: 300, Node: 1 << 33, State: PartThawed, Text: "12 processes", Took: 200, Cause: ThawQuorum},
		OrderReport{Order: 300, Node: 1, State: PartThawed, Cause: ThawLocal},
		OrderEnd{Order: 300, By: "root@h1", Reason: OrderThawed},
		OrderEnd{Order: 300, By: "n3", Reason: OrderNodeAway},
	}
}

func fullResult() Result {
	return Result{
		Code: Queued, Fence: 7, Locks: []string{"a", "b"}, Owner: "ann", Ticket: 300, Place: 3,
		Broken: []string{"bob", ""}, Checks: []Check{{Lock: "a", Process: fullProcess()}}, Node: 4, Reason: "so it is",
	}
}

func fullEvent() Event {
	return Event{
		Kind: EventReleased, Ask: Ask{1, 2}, Waited: true, Owner: "ann", ID: RequestID{7}, Locks: []string{"a", "b"},
		Fence: 3, Ticket: 4, Mode: Slots, Process: fullProcess(), Autounlock: true, Cause: CauseBroken, By: "root", At: 5,
	}
}

// TestGolden pins the encodings. Nodes of different releases, and logs and
// snapshots on disk, depend on them: a change needs a new version.
func TestGolden(t *testing.T) {
	var b strings.Builder
	line := func(what string, enc []byte) { fmt.Fprintf(&b, "%s\n\t%s\n", what, hex.EncodeToString(enc)) }
	for _, c := range fullCommands() {
		p := Proposal{Ask: Ask{2, 129}, Floor: 100, Command: c}
		enc := AppendProposal(nil, p)
		line(fmt.Sprintf("%T", c), enc)
		back, rest, err := DecodeProposal(append(enc, "rest"...))
		if err != nil || string(rest) != "rest" || !reflect.DeepEqual(back, p) {
			t.Errorf("%+v became %+v, rest %q, %v", p, back, rest, err)
		}
	}
	line("entry", AppendEntry(nil, Entry{Now: 1000, Proposals: []Proposal{{Command: Tick{}}, {Command: Tick{}}}}))
	line("result", AppendResult(nil, fullResult()))
	line("event", AppendEvent(nil, fullEvent()))
	line("snapshot", encode(t, sound(t)))
	line("result of an order", AppendResult(nil, Result{Order: 300}))
	line("event of an order", AppendEvent(nil, fullOrderEvent(t)))
	line("snapshot with orders", encode(t, ordered(t)))
	line("event of a suspension", AppendEvent(nil, fullSuspended()))
	line("snapshot with a suspended hold", encode(t, suspended(t)))

	const path = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the encoding has changed; other releases could not read it:\n%s", b.String())
	}
}

func TestDecodeRefuses(t *testing.T) {
	long := strings.Repeat("x", MaxName+1)
	encoded := func(c Command) []byte { return AppendEntry(nil, Entry{Proposals: []Proposal{{Command: c}}}) }
	many := make([]string, MaxLocks+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	tick := encoded(Tick{})
	patched := func(i int, v byte) []byte {
		b := bytes.Clone(tick)
		b[i] = v
		return b
	}
	for _, tc := range []struct {
		name string
		b    []byte
		want error
		text string
	}{
		{"empty", nil, ErrCorrupt, "cut short"},
		{"version 0", patched(0, 0), ErrCorrupt, "version 0"},
		{"later version", patched(0, 2), ErrNewer, "upgrade this node"},
		{"later version of a proposal", patched(3, 2), ErrNewer, "upgrade this node"},
		{"later kind", patched(4, 15), ErrNewer, "command kind 15 is not known here"},
		{"kind of the order ledger", patched(4, 40), ErrNewer, "upgrade this node"},
		{"kind 0", patched(4, 0), ErrCorrupt, "command kind 0"},
		{"no command", encoded(nil), ErrCorrupt, "command kind 0"},
		{"cut short", tick[:len(tick)-1], ErrCorrupt, "cut short"},
		{"something behind", append(bytes.Clone(tick), 0), ErrCorrupt, "1 bytes too many"},
		{"too large", make([]byte, MaxEntry+1), ErrCorrupt, "bytes long"},
		{"too many proposals", []byte{1, 0, 0xff, 0xff, 0x03}, ErrCorrupt, "proposals 65535 above 4096"},
		{"false count", []byte{1, 0, 0x80, 0x10, 1, 7}, ErrCorrupt, "proposals cut short"},
		{"number in too many bytes", []byte{1, 0x80, 0x00, 0}, ErrCorrupt, "bad number"},
		{"number too large", append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...), ErrCorrupt, "bad number"},
		{"long name", encoded(Acquire{Locks: []string{long}}), ErrCorrupt, "lock name"},
		{"empty name", encoded(Acquire{Locks: []string{""}}), ErrCorrupt, ""},
		{"name with a blank", encoded(Acquire{Locks: []string{"a b"}}), ErrCorrupt, "white space"},
		{"name with a tab", encoded(Release{Locks: []string{"a\tb"}}), ErrCorrupt, "white space"},
		{"name with DEL", encoded(Break{Locks: []string{"a\x7f"}}), ErrCorrupt, "control"},
		{"name twice", encoded(Acquire{Locks: []string{"a", "b", "a"}}), ErrCorrupt, "named twice"},
		{"too many names", encoded(Acquire{Locks: many}), ErrCorrupt, "locks 65 above 64"},
		{"long owner", encoded(Acquire{Owner: long}), ErrCorrupt, "owner"},
		{"owner of two lines", encoded(Renew{Owner: "a\nb"}), ErrCorrupt, "control"},
		{"long host", encoded(Acquire{Process: Process{Host: long[:MaxHost+1]}}), ErrCorrupt, "host name"},
		{"negative process id", encoded(Acquire{Process: Process{PID: -1}}), ErrCorrupt, "process id"},
		{"choice", encoded(Acquire{Choice: 2}), ErrCorrupt, "choice"},
		{"mode", encoded(Acquire{Mode: 3}), ErrCorrupt, "mode"},
		{"kind before the order ledger", patched(4, 31), ErrNewer, "command kind 31 is not known here"},
		{"long spec", encoded(OrderOpen{Spec: make([]byte, MaxOrderSpec+1)}), ErrCorrupt, "spec"},
		{"many nodes", encoded(OrderOpen{Nodes: make([]string, MaxOrderNodes+1)}), ErrCorrupt, "nodes"},
		{"long report", encoded(OrderReport{Text: long + long}), ErrCorrupt, "report"},
		{"long id", encoded(RemoveServer{ID: long}), ErrCorrupt, "server's id"},
		{"address of two lines", encoded(RemoveServer{ID: "a", Addr: "h\n:1"}), ErrCorrupt, "control"},
		{"long context", encoded(Suspend{Context: strings.Repeat("x", MaxContext+1)}), ErrCorrupt, "context"},
		{"context of two lines", encoded(Suspend{Context: "a\nb"}), ErrCorrupt, "control"},
		{"long context id", encoded(Suspend{ContextID: strings.Repeat("x", MaxContextID+1)}), ErrCorrupt, "context id"},
		{"long context id to resume", encoded(Resume{ContextID: strings.Repeat("x", MaxContextID+1)}), ErrCorrupt, "context id"},
		{"too many fences", encoded(ProcessGone{Fences: make([]Fence, MaxNamed+1)}), ErrCorrupt, "list 4097"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeEntry(tc.b)
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
	flags := encoded(Acquire{Owner: "o", Locks: []string{"l"}})
	flags[len(flags)-7] = 8 // before limit, lease, and four fields of the process
	id := encoded(Release{})
	id[len(id)-3] = 5
	zeroID := encoded(Release{ID: RequestID{1}})
	zeroID[len(zeroID)-18] = 0
	for name, b := range map[string][]byte{"flags": flags, "id length": id, "zero id": zeroID} {
		if _, err := DecodeEntry(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDecodeOutcomeRefuses(t *testing.T) {
	names := func(n, size int) (list []string) {
		for range n {
			list = append(list, strings.Repeat("x", size))
		}
		return list
	}
	for name, r := range map[string]Result{
		"code":           {Code: Superseded + 1},
		"too many names": {Locks: names(maxResultNames+1, 1)},
		"too much text":  {Broken: names(100, 1000)},
		"checks":         {Checks: make([]Check, MaxLocks+1)},
		"reason":         {Reason: strings.Repeat("x", MaxReason+1)},
		"place":          {Place: -1},
	} {
		if v, _, err := DecodeResult(AppendResult(nil, r)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %+v, %v", name, v, err)
		}
	}
	for name, e := range map[string]Event{
		"kind 0": {},
		"mode":   {Kind: EventGranted, Mode: 9},
		"cause":  {Kind: EventGranted, Cause: CauseResumed + 1},
		"by":     {Kind: EventGranted, By: "a\nb"},
	} {
		if v, _, err := DecodeEvent(AppendEvent(nil, e)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %+v, %v", name, v, err)
		}
	}
	if _, _, err := DecodeEvent(AppendEvent(nil, Event{Kind: EventSuspended + 1})); !errors.Is(err, ErrNewer) {
		t.Errorf("later event kind: %v", err)
	}
	if _, _, err := DecodeResult([]byte{2, 0}); !errors.Is(err, ErrNewer) {
		t.Errorf("later result version: %v", err)
	}
	if _, _, err := DecodeProposal([]byte{1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("half a proposal: %v", err)
	}
}

// TestBiggestFits makes sure that no valid command or result is too large to be
// decoded again.
func TestBiggestFits(t *testing.T) {
	big := func(i, n int) string { return fmt.Sprintf("%0*d", n, i) }
	var locks, owners []string
	for i := range MaxLocks {
		locks = append(locks, big(i, MaxName))
	}
	var checks []Check
	process := Process{Host: big(1, MaxHost), PID: 1<<31 - 1, Start: 1<<64 - 1, Boot: big(2, MaxHost)}
	for _, l := range locks {
		checks = append(checks, Check{l, process})
		owners = append(owners, l)
	}
	fences, tickets := make([]Fence, MaxNamed), make([]Ticket, MaxNamed)
	for i := range fences {
		fences[i], tickets[i] = 1<<64-1, 1<<64-1
	}
	owner := big(3, MaxOwner)
	var nodes []string
	for i := range MaxOrderNodes {
		nodes = append(nodes, big(i, MaxOrderNames/MaxOrderNodes))
	}
	for _, c := range []Command{
		Acquire{Owner: owner, ID: RequestID{1}, Locks: locks, Choice: All, Process: process, Limit: 1<<64 - 1, Lease: 1<<64 - 1},
		Release{Owner: owner, ID: RequestID{1}, Locks: locks, Fence: 1<<64 - 1},
		Break{Locks: locks, By: owner, Fence: 1<<64 - 1},
		ProcessGone{Process: process, Fences: fences, Tickets: tickets},
		OrderOpen{
			Nonce: [16]byte{1}, By: owner, Action: big(1, MaxOrderAction), Spec: make([]byte, MaxOrderSpec),
			Nodes: nodes, Timeout: MaxOrderTimeout, Within: MaxOrderTimeout, Fence: 1<<64 - 1,
		},
		Suspend{Fence: 1<<64 - 1, By: owner, Context: big(1, MaxContext), ContextID: big(1, MaxContextID)},
		Resume{
			Fence: 1<<64 - 1, ContextID: big(1, MaxContextID), By: owner, Owner: owner, ID: RequestID{1},
			Limit: 1<<64 - 1, Lease: 1<<64 - 1, Process: process,
		},
		OrderReport{Order: 1<<64 - 1, Node: 1<<64 - 1, State: PartFrozen, Text: big(1, MaxOrderText), Took: MaxOrderTimeout},
	} {
		if err := Validate(c); err != nil {
			t.Fatalf("%T: %v", c, err)
		}
		p := Proposal{Ask: Ask{1<<64 - 1, 1<<64 - 1}, Floor: 1<<64 - 1, Command: c}
		recode(t, Entry{Now: 1<<64 - 1, Proposals: []Proposal{p}})
	}
	r := Result{Locks: locks, Owner: owner, Broken: owners, Checks: checks, Reason: big(4, MaxReason)}
	if _, _, err := DecodeResult(AppendResult(nil, r)); err != nil {
		t.Error(err)
	}
	e := Event{Kind: EventReleased, Owner: owner, Locks: locks, Process: process, By: owner}
	if _, _, err := DecodeEvent(AppendEvent(nil, e)); err != nil {
		t.Error(err)
	}
}
