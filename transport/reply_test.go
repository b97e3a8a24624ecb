package transport

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func replies(src io.Reader) ([]Reply, error) {
	r := NewReplyReader(src)
	var all []Reply
	for {
		p, err := r.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, p)
	}
}

func TestStatusBytes(t *testing.T) {
	fault := &Fault{WordTimeout, "no lock\nwithin 3 s"}
	for _, c := range []struct {
		s      Status
		v1, v2 string
	}{
		{Status{}, "owner \nlocked 0\n\n\n", "owner \nlocked 0\n\n\n"},
		{
			Status{Obtained: true, Owner: "me", Locked: true, Locks: []string{"a", "b"}, Fence: 7},
			"print_obtained\nowner me\nlocked 1\nlockname a\n\n\n",
			"print_obtained\nowner me\nlocked 1\nlockname a\nlockname b\nfence 7\n\n\n",
		},
		{
			Status{Owner: "bob", Fault: fault},
			"owner bob\nlocked 0\nerror timeout\n\n\n",
			"owner bob\nlocked 0\nerror timeout no lock within 3 s\n\n\n",
		},
	} {
		if got := string(c.s.Append(nil, 1)); got != c.v1 {
			t.Errorf("old: %q", got)
		}
		if got := string(c.s.Append(nil, 2)); got != c.v2 {
			t.Errorf("proto 2: %q", got)
		}
	}
}

func TestReplyReader(t *testing.T) {
	var b []byte
	b = AppendProto(b, "n1")
	b = AppendCheck(b, "a", "h", 9)
	b = AppendWaiting(b, "bob", 3)
	b = append(b, "unheard_of line\nECHO hello you\n"...)
	b = Status{Obtained: true, Owner: "me", Locked: true, Locks: []string{"a", "b"}, Fence: 7}.Append(b, 2)
	b = AppendLost(b, 7, "broken", "eve")
	b = AppendBroke(b, "me")
	b = Status{Fault: &Fault{WordNoLeader, "1 of 3 servers"}}.Append(b, 2)
	b = AppendVersion(b, "2.0", time.Unix(1e9, 0))
	b = AppendListEnd(b)
	b = AppendLock(b, "a", "me")
	b = AppendLock(b, "b", "")
	b = AppendListEnd(b)
	b = AppendHoldsEnd(AppendWaiter(AppendHold(b, []byte(`{"a":1}`)), []byte(`{}`)))
	b = AppendPong(b)
	b = AppendAnchored(b, 1<<64-1)
	b = AppendMoved(b, []string{"x:1", "y:2"})
	want := []Reply{
		{Kind: ReplyProto, Text: "n1"},
		{Kind: ReplyCheck, Lock: "a", Host: "h", PID: 9, DeadPID: true},
		{Kind: ReplyWaiting, Owner: "bob"},
		{Kind: ReplyPlace, Place: 3},
		{Kind: ReplyEcho, Text: "hello you"},
		{Kind: ReplyObtained},
		{Kind: ReplyStatus, Status: Status{Obtained: true, Owner: "me", Locked: true, Locks: []string{"a", "b"}, Fence: 7}},
		{Kind: ReplyLost, Fence: 7, Cause: "broken", By: "eve"},
		{Kind: ReplyBroke, Owner: "me"},
		{Kind: ReplyStatus, Status: Status{Fault: &Fault{WordNoLeader, "1 of 3 servers"}}},
		{Kind: ReplyVersion, Text: "2.0 1000000000"},
		{Kind: ReplyBlank},
		{Kind: ReplyBlank},
		{Kind: ReplyLock, Lock: "a", Owner: "me"},
		{Kind: ReplyLock, Lock: "b"},
		{Kind: ReplyBlank},
		{Kind: ReplyBlank},
		{Kind: ReplyHold, Text: `{"a":1}`},
		{Kind: ReplyWaiter, Text: `{}`},
		{Kind: ReplyBlank},
		{Kind: ReplyPong},
		{Kind: ReplyAnchored, Fence: 1<<64 - 1},
		{Kind: ReplyMoved, Addrs: []string{"x:1", "y:2"}},
	}
	for how, src := range map[string]io.Reader{
		"whole":    strings.NewReader(string(b)),
		"by bytes": iotest.OneByteReader(strings.NewReader(string(b))),
	} {
		got, err := replies(src)
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || !reflect.DeepEqual(got[i], want[i]) {
				t.Fatalf("%s: reply %d:\ngot  %+v\nwant %+v", how, i, got[i:], want[i:])
			}
		}
	}
}

func TestReplyEnds(t *testing.T) {
	for _, c := range []struct {
		in   string
		want error
	}{
		{"", nil},
		{"owner a\nlocked 1\nlockname a\n\n\n", nil},
		{"owner a\nlocked 1\nlockname a\n", io.ErrUnexpectedEOF},
		{"owner a", io.ErrUnexpectedEOF},
		{"fence x\n", ErrReply},
		{"lost x\n", ErrReply},
		{"anchored\n", ErrReply},
		{"place -1\n", ErrReply},
		{strings.Repeat("x", MaxReplyLine), ErrReply},
		{strings.Repeat("lockname x\n", maxReplyWords+1), ErrReply},
	} {
		if _, err := replies(strings.NewReader(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%.40q: %v, want %v", c.in, err, c.want)
		}
	}
}

func FuzzReplyReader(f *testing.F) {
	f.Add([]byte("print_obtained\nowner a\nlocked 1\nlockname a\nfence 3\nerror w t\n\n\nlock a b\n\n\n"))
	f.Add([]byte("autounlock_check a h 9 2\nprint_waiting b\nplace 3\nlost 1 broken e\nmoved a b\nanchored 3\nversion 1 2\n\npong\nhold {}\nwaiter {}\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := replies(strings.NewReader(string(in)))
		bytewise, err2 := replies(iotest.OneByteReader(strings.NewReader(string(in))))
		if !reflect.DeepEqual(whole, bytewise) || !errors.Is(err2, err) {
			t.Fatalf("%q: the cut matters:\n%+v %v\n%+v %v", in, whole, err, bytewise, err2)
		}
	})
}
