package transport

import (
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// requests reads all of src.
func requests(src io.Reader) ([]Request, error) {
	r := NewReader(src)
	var all []Request
	for {
		q, err := r.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, q)
	}
}

func TestReader(t *testing.T) {
	id := [16]byte{0: 0x0a, 15: 0xff}
	for _, c := range []struct {
		name, in string
		want     []Request
	}{
		{
			"IPC::Locker 1.48", "user U\nlocks A B\nblock 1\ntimeout 600\nautounlock 1\npid 42\nhostname h.x\nLOCK\n\nEOF\n\n",
			[]Request{
				{Verb: VerbLock, User: "U", Locks: []string{"A", "B"}, LocksGen: 1, Block: true, Timeout: 600 * time.Second, Autounlock: true, PID: 42, Host: "h.x", Proto: 1},
				{Verb: VerbEOF, User: "U", Locks: []string{"A", "B"}, LocksGen: 1, Block: true, Timeout: 600 * time.Second, Autounlock: true, PID: 42, Host: "h.x", Proto: 1},
			},
		},
		{
			"lines to skip", " user x\n\n0\nnonsense\nlocked a\nuser a b\r\nlock a a\r\nSTATUS now\r\nstatus\n",
			[]Request{{Verb: VerbStatus, User: "a", Locks: []string{"a"}, LocksGen: 1, Proto: 1}},
		},
		{
			"extensions before proto 2", "fence 3\nwait 1\nPING\nHOLDS\nCANCEL\nRENEW\nANCHOR\nproto 1\nVERSION",
			nil,
		},
		{
			"extensions", "proto 2\nrequest 0a0000000000000000000000000000ff\nchoice all\nmode slots 3\nlease 1.5\nstart 7\nboot b\nwait 0.25\nfence 18446744073709551615\nlocks x\nLOCK\nDEAD_PID h 5\nPING\n",
			[]Request{
				{Verb: VerbProto, Proto: 2},
				{
					Verb: VerbLock, Proto: 2, ID: id, Choice: ChoiceAll, Mode: ModeSlots, Slots: 3, Lease: 1500 * time.Millisecond,
					Start: 7, Boot: "b", Wait: 250 * time.Millisecond, Fence: 1<<64 - 1, Locks: []string{"x"}, LocksGen: 1,
				},
				{
					Verb: VerbDeadPID, Proto: 2, ID: id, Choice: ChoiceAll, Mode: ModeSlots, Slots: 3, Lease: 1500 * time.Millisecond,
					Start: 7, Boot: "b", Wait: 250 * time.Millisecond, Fence: 1<<64 - 1, Locks: []string{"x"}, LocksGen: 1,
					DeadHost: "h", DeadPID: 5,
				},
				{
					Verb: VerbPing, Proto: 2, ID: id, Choice: ChoiceAll, Mode: ModeSlots, Slots: 3, Lease: 1500 * time.Millisecond,
					Start: 7, Boot: "b", Wait: 250 * time.Millisecond, Fence: 1<<64 - 1, Locks: []string{"x"}, LocksGen: 1,
				},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, src := range map[string]io.Reader{
				"whole":    strings.NewReader(c.in),
				"by bytes": iotest.OneByteReader(strings.NewReader(c.in)),
			} {
				got, err := requests(src)
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if !reflect.DeepEqual(got, c.want) {
					t.Errorf("%s:\ngot  %+v\nwant %+v", how, got, c.want)
				}
			}
		})
	}
}

// TestFault: a setting without sense is reported by the verbs that depend on
// it, until it is set again.
func TestFault(t *testing.T) {
	long := strings.Repeat("n", MaxName+1)
	many := "locks"
	for i := range MaxNames + 1 {
		many += " n" + string(rune('A'+i%50)) + string(rune('A'+i/50))
	}
	auto := "locks a\nautounlock 1\npid 1\nhostname h\n"
	anchor := "proto 2\nfence 3\npid 1\nhostname h\nstart 5\nboot b\n"
	for _, c := range []struct{ in, want string }{
		{"timeout soon\nLOCK\n", WordBadRequest},
		{"timeout -1\nLOCK\n", WordBadRequest},
		{"timeout NaN\nLOCK\n", WordBadRequest},
		{"timeout inf\nLOCK\n", WordBadRequest},
		{"timeout\nLOCK\n", WordBadRequest},
		{"timeout soon\nSTATUS\n", ""},
		{"timeout soon\ntimeout 1\nLOCK\n", ""},
		{"locks " + long + "\nUNLOCK\n", WordTooLong},
		{"user " + long + "\nUNLOCK\n", WordTooLong},
		{many + "\nBREAK_LOCK\n", WordTooMany},
		{"locks a\x00b\nLOCK\n", WordBadRequest},
		{"locks \xff\xfe\nLOCK\n", ""},
		{"autounlock 1\nLOCK\n", WordBadRequest},
		{auto + "LOCK\n", ""},
		{auto + "pid\nLOCK\n", WordBadRequest},
		{auto + "pid 0\nLOCK\n", WordBadRequest},
		{auto + "pid -1\nLOCK\n", WordBadRequest},
		{auto + "pid 2147483648\nLOCK\n", WordBadRequest},
		{auto + "pid 2147483647\nLOCK\n", ""},
		{auto + "hostname\nLOCK\n", WordBadRequest},
		{auto + "hostname a;b\nLOCK\n", WordBadRequest},
		{auto + "pid abc\nautounlock 0\nLOCK\n", ""},
		{"DEAD_PID\n", WordBadRequest},
		{"DEAD_PID h\n", WordBadRequest},
		{"DEAD_PID h x\n", WordBadRequest},
		{"DEAD_PID h 1\n", ""},
		{anchor + "ANCHOR\n", ""},
		{anchor + "fence 0\nANCHOR\n", WordBadRequest},
		{anchor + "fence x\nANCHOR\n", WordBadRequest},
		{anchor + "pid 0\nANCHOR\n", WordBadRequest},
		{anchor + "hostname ?\nANCHOR\n", WordBadRequest},
		{anchor + "start x\nANCHOR\n", WordBadRequest},
		{anchor + "boot \x01\nANCHOR\n", WordBadRequest},
		{anchor + "timeout x\nANCHOR\n", ""},
	} {
		got, err := requests(strings.NewReader(c.in))
		got = slices.DeleteFunc(got, func(q Request) bool { return q.Verb == VerbProto })
		if err != nil || len(got) != 1 {
			t.Errorf("%.60q: %d requests, %v", c.in, len(got), err)
			continue
		}
		word := ""
		if got[0].Fault != nil {
			word = got[0].Fault.Word
		}
		if word != c.want {
			t.Errorf("%.60q: fault %v, want %q", c.in, got[0].Fault, c.want)
		}
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0":      0,
		"1.1":    1100 * time.Millisecond, // no float above it
		"0.25":   250 * time.Millisecond,
		"1e-30":  1, // above zero: no "for ever"
		"1e3":    1000 * time.Second,
		"1e300":  1<<63 - 1,
		"600 s":  600 * time.Second,
		"-0":     0,
		"9e9":    9e9 * time.Second,
		"9.3e9":  1<<63 - 1,
		"0.0001": 100 * time.Microsecond,
	} {
		got, err := requests(strings.NewReader("timeout " + in + "\nLOCK\n"))
		if err != nil || len(got) != 1 || got[0].Fault != nil || got[0].Timeout != want {
			t.Errorf("%s: %v, want %v (%v)", in, got, want, err)
		}
	}
}

func TestLineBound(t *testing.T) {
	fits := "user " + strings.Repeat("x", MaxLine-6) + "\nLOCK\n"
	if got, err := requests(strings.NewReader(fits)); err != nil || len(got) != 1 {
		t.Errorf("a line of MaxLine bytes: %d requests, %v", len(got), err)
	}
	for _, in := range []string{
		"user " + strings.Repeat("x", MaxLine-5) + "\nLOCK\n",
		strings.Repeat("x", 1<<20),
	} {
		var fault *Fault
		if _, err := requests(strings.NewReader(in)); !errors.As(err, &fault) || fault.Word != WordTooLong {
			t.Errorf("%d bytes: %v", len(in), err)
		}
	}
}

// TestReadAhead: what arrives while a LOCK waits is kept, up to a bound, and
// only a CANCEL before any other verb is taken out.
func TestReadAhead(t *testing.T) {
	for _, c := range []struct {
		ahead  string
		cancel bool
		then   []Verb
	}{
		{"\nuser b\nCANCEL\nSTATUS\n", true, []Verb{VerbStatus}},
		{"UNLOCK\nCANCEL\n", false, []Verb{VerbUnlock, VerbCancel}},
		{"CANCEL", false, nil},
		{"EOF\n\n", false, []Verb{VerbEOF}},
	} {
		r := NewReader(iotest.OneByteReader(strings.NewReader("proto 2\nLOCK\n" + c.ahead)))
		for range 2 {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
		cancel := false
		for {
			cancel = cancel || r.TakeCancel()
			if err := r.Fill(); err != nil {
				break
			}
		}
		var then []Verb
		for {
			q, err := r.Next()
			if err != nil {
				break
			}
			then = append(then, q.Verb)
		}
		if cancel != c.cancel || !reflect.DeepEqual(then, c.then) {
			t.Errorf("%q: cancel %v, then %v", c.ahead, cancel, then)
		}
	}

	r := NewReader(strings.NewReader("LOCK\n" + strings.Repeat("STATUS\n", MaxPending)))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		err = r.Fill()
	}
	var fault *Fault
	if !errors.As(err, &fault) || fault.Word != WordTooLong || r.Buffered() > 2*MaxPending {
		t.Errorf("read ahead %d bytes, %v", r.Buffered(), err)
	}
}

func TestNarrow(t *testing.T) {
	r := NewReader(strings.NewReader("locks a b\nLOCK\nUNLOCK\nlocks c d\nLOCK\n"))
	lock, _ := r.Next()
	r.Narrow(lock.LocksGen, []string{"b"})
	if q, _ := r.Next(); !reflect.DeepEqual(q.Locks, []string{"b"}) {
		t.Errorf("after narrowing: %q", q.Locks)
	}
	q, _ := r.Next()
	r.Narrow(lock.LocksGen, []string{"b"})
	if !reflect.DeepEqual(q.Locks, []string{"c", "d"}) || r.set.Locks[0] != "c" {
		t.Errorf("an old list has replaced a new one: %q", r.set.Locks)
	}
}

// TestAppend: the bytes of IPC::Locker 1.48 and later.
func TestAppend(t *testing.T) {
	for _, c := range []struct {
		q    Request
		want string
	}{
		{
			Request{Verb: VerbLock, User: "U", Locks: []string{"A", "B"}, Block: true, Timeout: 600 * time.Second},
			"user U\nlocks A B\nblock 1\ntimeout 600\nLOCK\n\nEOF\n\n",
		},
		{
			Request{Verb: VerbLock, User: "U", Locks: []string{"A"}, Autounlock: true, PID: 9, Host: "h", Timeout: 1500 * time.Millisecond},
			"user U\nlocks A\nblock 0\ntimeout 1.5\nautounlock 1\npid 9\nhostname h\nLOCK\n\nEOF\n\n",
		},
		{Request{Verb: VerbUnlock, User: "U", Locks: []string{"A"}, Block: true, Autounlock: true}, "user U\nlocks A\nUNLOCK\n\nEOF\n\n"},
		{Request{User: "U", Locks: []string{"A"}}, "user U\nlocks A\nblock 0\ntimeout 0\n\n\nEOF\n\n"},
		{
			Request{Verb: VerbDeadPID, User: "U", Locks: []string{"A"}, DeadHost: "h", DeadPID: 7},
			"user U\nlocks A\nblock 0\ntimeout 0\nDEAD_PID h 7\n\nEOF\n\n",
		},
		{
			Request{Verb: VerbAnchor, Proto: 2, User: "U", Fence: 3, PID: 9, Host: "h", Start: 5, Boot: "b/1"},
			"proto 2\nuser U\nlocks\npid 9\nhostname h\nrequest 00000000000000000000000000000000\nfence 3\nstart 5\nboot b/1\nANCHOR\n\nEOF\n\n",
		},
	} {
		if got := string(c.q.Append(nil, true)); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("user U\nlocks A B\nblock 1\ntimeout 600\nautounlock 1\npid 42\nhostname h\nLOCK\n\nEOF\n\n"))
	f.Add([]byte("proto 2\nrequest 0a0000000000000000000000000000ff\nchoice all\nmode slots 3\nlease 1.5\nfence 9\nLOCK\nCANCEL\n"))
	f.Add([]byte("proto 2\nuser U\nfence 3\npid 9\nhostname h\nstart 5\nboot b/1\nANCHOR\n\n"))
	f.Add([]byte(" x\n0\ntimeout 1e9999\nlocks \x00 \xff\nDEAD_PID a b\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := requests(strings.NewReader(string(in)))
		bytewise, err2 := requests(iotest.OneByteReader(strings.NewReader(string(in))))
		if !reflect.DeepEqual(whole, bytewise) || (err == nil) != (err2 == nil) {
			t.Fatalf("%q: the cut matters:\n%+v %v\n%+v %v", in, whole, err, bytewise, err2)
		}
		for _, q := range whole {
			if len(q.Locks) > MaxNames || len(q.User) > MaxName || q.Timeout < 0 || q.Lease < 0 || q.Wait < 0 || q.PID < 0 {
				t.Fatalf("out of bounds: %+v", q)
			}
			if q.Fault != nil || (q.Verb != VerbLock && q.Verb != VerbUnlock && q.Verb != VerbAnchor) {
				continue
			}
			again, err := requests(strings.NewReader(string(q.Append(nil, false))))
			if err != nil || len(again) == 0 {
				t.Fatalf("%+v does not survive encoding: %v", q, err)
			}
			got := again[len(again)-1]
			q.LocksGen = got.LocksGen
			// Two need no more than this.
			if less := (Request{Verb: q.Verb, User: q.User, Locks: q.Locks, LocksGen: q.LocksGen, Proto: q.Proto, ID: q.ID, Fence: q.Fence}); q.Verb == VerbUnlock {
				q = less
			} else if q.Verb == VerbAnchor {
				less.Host, less.PID, less.Start, less.Boot = q.Host, q.PID, q.Start, q.Boot
				q = less
			} else if !q.Autounlock && (q.Proto < 2 || q.PID == 0) {
				q.Host, q.PID = got.Host, got.PID
			}
			for _, d := range []struct{ got, want *time.Duration }{{&got.Timeout, &q.Timeout}, {&got.Lease, &q.Lease}, {&got.Wait, &q.Wait}} {
				if diff := *d.got - *d.want; diff.Abs() <= *d.want/1e15+1 {
					*d.got = *d.want // as near as a float comes
				}
			}
			if !reflect.DeepEqual(got, q) {
				t.Fatalf("%+v\nbecame %+v", q, got)
			}
		}
	})
}
