package client

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/transport"
)

func TestLockAndUnlock(t *testing.T) {
	for _, proto := range []int{1, 2} {
		f := newFake(t, proto, nil)
		l := locker(t, Options{Locks: []string{"a", "b"}, User: "me"}, f)
		f.table.hold("a", "other")
		ctx := t.Context()
		if l.Locked() || l.LockName() != "a" || l.Lost() != nil {
			t.Errorf("proto %d: a new Locker has locks", proto)
		}
		if err := l.Lock(ctx); err != nil {
			t.Fatalf("proto %d: %v", proto, err)
		}
		if !l.Locked() || l.LockName() != "b" || (l.Fence() != 0) != (proto == 2) {
			t.Errorf("proto %d: locked %v, %q, fence %d", proto, l.Locked(), l.LockName(), l.Fence())
		}
		n := len(f.requests(transport.VerbLock))
		if err := l.Lock(ctx); err != nil || len(f.requests(transport.VerbLock)) != n {
			t.Errorf("proto %d: Lock while locked: %v, or it asked the server", proto, err)
		}
		lost := l.Lost()
		if err := l.Unlock(ctx); err != nil {
			t.Errorf("proto %d: %v", proto, err)
		}
		if l.Locked() || f.table.owner("b") != "" {
			t.Errorf("proto %d: still locked after Unlock", proto)
		}
		if loss, ok := <-lost; ok {
			t.Errorf("proto %d: lost by Unlock: %v", proto, loss)
		}
		if err := l.Unlock(ctx); err != nil || len(f.requests(transport.VerbUnlock)) != 1 {
			t.Errorf("proto %d: a second Unlock: %v, or it asked the server", proto, err)
		}
		if proto == 1 {
			until(t, "the connection is not kept", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.accepted.Load() == 2
			})
		}
	}
}

func TestTryAndWaitLimit(t *testing.T) {
	for _, proto := range []int{1, 2} {
		f := newFake(t, proto, nil)
		f.table.hold("x", "other")
		l := locker(t, Options{Locks: []string{"x"}, Try: true}, f)
		if err := l.Lock(t.Context()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "other") {
			t.Errorf("proto %d: Try: %v", proto, err)
		}
		l = locker(t, Options{Locks: []string{"x"}, WaitLimit: 50 * time.Millisecond}, f)
		if err := l.Lock(t.Context()); !errors.Is(err, ErrTimeout) {
			t.Errorf("proto %d: WaitLimit: %v", proto, err)
		}
		if l.Locked() {
			t.Errorf("proto %d: locked without a grant", proto)
		}
	}
}

func TestWaitIsWithdrawnWithItsContext(t *testing.T) {
	f := newFake(t, 2, nil)
	f.table.hold("x", "other")
	l := locker(t, Options{Locks: []string{"x"}}, f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Lock(ctx) }()
	until(t, "it waits", func() bool { return f.table.waiters("x") == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := f.table.waiters("x"); n != 0 {
		t.Errorf("%d waiters are left behind", n)
	}
	f.table.free("x")
	if o := f.table.owner("x"); o != "" {
		t.Errorf("%s got a lock that it had given up", o)
	}
}

func TestGrantThatCrossesWithTheCancel(t *testing.T) {
	f := newFake(t, 2, nil)
	ctx, cancel := context.WithCancel(t.Context())
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		switch q.Verb {
		case transport.VerbLock:
			cancel()
			return true
		case transport.VerbCancel:
			b := transport.Status{Owner: "me", Locked: true, Locks: []string{"x"}, Fence: 5}.Append(nil, 2)
			_, _ = w.Write(transport.Status{Fault: &transport.Fault{Word: transport.WordCancelled}}.Append(b, 2))
			return true
		}
		return false
	})
	l := locker(t, Options{Locks: []string{"x"}, User: "me"}, f)
	if err := l.Lock(ctx); !errors.Is(err, context.Canceled) || l.Locked() {
		t.Errorf("%v, locked %v", err, l.Locked())
	}
	if n := len(f.requests(transport.VerbUnlock)); n != 0 {
		t.Errorf("%d releases besides", n)
	}
}

func TestCancelThatIsNotAnswered(t *testing.T) {
	f := newFake(t, 2, nil)
	ctx, cancel := context.WithCancel(t.Context())
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		if q.Verb == transport.VerbLock {
			cancel()
		}
		return q.Verb == transport.VerbLock || q.Verb == transport.VerbCancel
	})
	l := locker(t, Options{Locks: []string{"x"}}, f)
	start := time.Now()
	if err := l.Lock(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if d := time.Since(start); d > 2*cancelTime+time.Second {
		t.Errorf("took %v", d)
	}
	if n := len(f.requests(transport.VerbUnlock)); n != 1 {
		t.Errorf("%d releases over another connection, want 1", n)
	}
}

func TestEndlessRepliesEndWithTheContext(t *testing.T) {
	f := newFake(t, 2, nil)
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		if q.Verb == transport.VerbLock {
			_, _ = io.WriteString(w, strings.Repeat("place 3\n\nECHO x\nprint_waiting o\nfrob\n", 1000))
		}
		return q.Verb == transport.VerbLock
	})
	l := locker(t, Options{Locks: []string{"x"}, WaitLimit: 100 * time.Millisecond}, f)
	if err := l.Lock(t.Context()); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
}

func TestOldServerIsToldThatAWaitIsOver(t *testing.T) {
	f := newFake(t, 1, nil)
	f.table.hold("x", "other")
	l := locker(t, Options{Locks: []string{"x"}, WaitLimit: 30 * time.Millisecond}, f)
	if err := l.Lock(t.Context()); !errors.Is(err, ErrTimeout) {
		t.Fatal(err)
	}
	if len(f.requests(transport.VerbUnlock)) != 1 {
		t.Error("a grant that crossed with the end of the wait would have stayed for ever")
	}
}

func TestWaitingSurvivesTheServer(t *testing.T) {
	shared := newTable()
	a, b := newFake(t, 2, shared), newFake(t, 2, shared)
	shared.hold("x", "other")
	var places []int
	l := locker(t, Options{Locks: []string{"x"}, Hooks: Hooks{Place: func(n int) { places = append(places, n) }}}, a, b)
	done := make(chan error, 1)
	go func() { done <- l.Lock(t.Context()) }()
	until(t, "it waits", func() bool { return shared.waiters("x") == 1 })
	second := locker(t, Options{Locks: []string{"x"}, User: "second"}, b)
	go func() { _ = second.Lock(t.Context()) }()
	until(t, "somebody waits behind it", func() bool { return shared.waiters("x") == 2 })
	a.setDown(true)
	until(t, "it asks the other server", func() bool { return len(b.requests(transport.VerbLock)) == 2 })
	shared.free("x")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	qa, qb := a.requests(transport.VerbLock)[0], b.requests(transport.VerbLock)
	if qa.ID == [16]byte{} || (qa.ID != qb[0].ID && qa.ID != qb[1].ID) {
		t.Error("it came back as somebody else")
	}
	mine := slices.IndexFunc(qb, func(q transport.Request) bool { return q.ID == qa.ID })
	if qa.Turn != 1 || qb[mine].Turn != 2 {
		t.Errorf("turn %d, and then %d", qa.Turn, qb[mine].Turn)
	}
	if shared.waiters("x") != 1 || shared.owner("x") != l.User() {
		t.Error("it has lost its place")
	}
	for _, p := range places {
		if p != 1 {
			t.Errorf("places %v", places)
		}
	}
	if l.servers.order()[0].addr != b.addr() {
		t.Error("the server that answers is not tried first")
	}
}

// TestLostRequestIsGivenUp: a server that we have lost may take the lock for us later,
// unless another one hears that nobody wants it.
func TestLostRequestIsGivenUp(t *testing.T) {
	shared := newTable()
	a, b := newFake(t, 2, shared), newFake(t, 2, shared)
	a.setIntercept(func(q transport.Request, _ io.Writer) bool {
		if q.Verb == transport.VerbLock {
			a.setDown(true)
		}
		return q.Verb == transport.VerbLock
	})
	b.setIntercept(func(q transport.Request, _ io.Writer) bool {
		if q.Verb == transport.VerbLock {
			b.cut()
		}
		return q.Verb == transport.VerbLock
	})
	for name, o := range map[string]Options{
		"by itself":   {ConnectTries: 1},
		"by its user": {ConnectTries: 1000, WaitLimit: 200 * time.Millisecond},
		"of many":     {ConnectTries: 1, Request: [16]byte{1}},
	} {
		a.setDown(false)
		before := len(b.requests(transport.VerbUnlock))
		o.Locks = []string{"x"}
		if err := locker(t, o, a, b).Lock(t.Context()); err == nil {
			t.Fatalf("%s: locked", name)
		}
		locks := a.requests(transport.VerbLock)
		lost, given := locks[len(locks)-1], b.requests(transport.VerbUnlock)[before:]
		if o.Request != [16]byte{} {
			if lost.Turn != 0 || len(given) != 0 {
				t.Errorf("%s: turn %d, %d times given up what others may have", name, lost.Turn, len(given))
			}
			continue
		}
		if lost.Turn == 0 || len(given) != 1 || given[0].ID != lost.ID || given[0].Fence != 0 {
			t.Errorf("%s: turn %d, given up by %+v", name, lost.Turn, given)
		}
	}
}

func TestMovedWhileWaiting(t *testing.T) {
	f := newFake(t, 2, nil)
	f.table.hold("x", "other")
	moved := false
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		if q.Verb != transport.VerbLock || moved {
			return false
		}
		moved = true
		_, _ = w.Write(transport.AppendMoved(transport.AppendWaiting(nil, "other", 1), []string{"bad", "127.0.0.1:1", ":5", "h:99999"}))
		return true
	})
	l := locker(t, Options{Locks: []string{"x"}}, f)
	done := make(chan error, 1)
	go func() { done <- l.Lock(t.Context()) }()
	until(t, "it comes back", func() bool { return f.table.waiters("x") == 1 })
	f.table.free("x")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(l.servers.order()); n != 2 {
		t.Errorf("%d servers, want its own and the one valid address", n)
	}
}

func TestLost(t *testing.T) {
	f := newFake(t, 2, nil)
	l := locker(t, Options{Locks: []string{"x"}}, f)
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	breaker := locker(t, Options{Locks: []string{"x"}, User: "admin"}, f)
	broken, err := breaker.BreakLock(t.Context())
	if err != nil || len(broken) != 1 || broken[0] != l.User() {
		t.Errorf("BreakLock: %q, %v", broken, err)
	}
	select {
	case loss := <-l.Lost():
		if loss != (Loss{Cause: CauseBroken, By: "admin"}) {
			t.Errorf("got %v", loss)
		}
	case <-time.After(patience):
		t.Fatal("nobody said that the lock is lost")
	}
	if l.Locked() {
		t.Error("still locked")
	}
	if err := l.Unlock(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("Unlock: %v", err)
	}
	until(t, "the connection is closed over which the loss was told", func() bool { return f.open.Load() == 0 })
	if err := l.Lock(t.Context()); err != nil || !l.Locked() {
		t.Errorf("Lock after a loss: %v", err)
	}
}

func TestHoldSurvivesTheConnection(t *testing.T) {
	shared := newTable()
	a, b := newFake(t, 2, shared), newFake(t, 2, shared)
	l := locker(t, Options{Locks: []string{"x"}}, a, b)
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	fence := l.Fence()
	a.setDown(true)
	until(t, "it asks for its hold at the other server", func() bool { return len(b.requests(transport.VerbRenew)) > 0 })
	if q := b.requests(transport.VerbRenew)[0]; q.Fence != fence {
		t.Errorf("it asks for fence %d, not %d", q.Fence, fence)
	}
	until(t, "the other server has its hold", func() bool {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		return shared.holds["x"].renewed
	})
	shared.mu.Lock()
	shared.lose("x", CauseLimit, "")
	shared.mu.Unlock()
	if loss := <-l.Lost(); loss.Cause != CauseLimit {
		t.Errorf("got %v over the new connection", loss)
	}
}

func TestHoldThatEndedWhileNobodyWasThere(t *testing.T) {
	f := newFake(t, 2, nil)
	l := locker(t, Options{Locks: []string{"x"}}, f)
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.setDown(true)
	f.table.free("x")
	f.setDown(false)
	if loss := <-l.Lost(); loss.Cause != CauseUnknown {
		t.Errorf("got %v", loss)
	}
}

func TestSilentServerIsLeft(t *testing.T) {
	shared := newTable()
	a, b := newFake(t, 2, shared), newFake(t, 2, shared)
	l := locker(t, Options{Locks: []string{"x"}}, a, b)
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	a.mute.Store(true)
	deadline := time.Now().Add(2 * patience)
	for len(b.requests(transport.VerbRenew)) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("it stays with a server that does not answer")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(start); d > 12*time.Second {
		t.Errorf("noticed after %v", d)
	}
	if !l.Locked() {
		t.Error("lost by a change of servers")
	}
}

func TestLeaseIsRenewedAndLostInTime(t *testing.T) {
	f := newFake(t, 2, nil)
	const lease = 2 * time.Second
	l := locker(t, Options{Locks: []string{"x"}, Lease: lease}, f)
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "it renews", func() bool { return len(f.requests(transport.VerbRenew)) >= 5 })
	if !l.Locked() {
		t.Fatal("lost though it was renewed")
	}
	f.mute.Store(true)
	start := time.Now()
	loss := <-l.Lost()
	if d := time.Since(start); loss.Cause != CauseLease || d > lease {
		t.Errorf("%v after %v without a renewal", loss, d)
	}
}

// TestUnlockAfterALostAnswer loses the answer to a release, which has ended the hold or come
// too late. Whoever is told that it was released has had it until then.
func TestUnlockAfterALostAnswer(t *testing.T) {
	tests := map[string]struct {
		answered string // what the second server says before that nothing is held
		twice    bool   // Unlock is called again, in place of asking again by itself
		want     error
	}{
		"by our own request":         {"lost 1 owner\n", false, nil},
		"broken before":              {"lost 1 broken bob\n", false, ErrLost},
		"of another hold":            {"lost 7 owner\n", false, ErrUncertain},
		"put on disk, and restarted": {"lost 1 suspended\n", false, ErrSuspended},
		"nobody remembers":           {"", false, ErrUncertain},
		"by the Unlock before":       {"lost 1 owner\n", true, nil},
		"before the Unlock before":   {"lost 1 limit\n", true, ErrLost},
		"nobody remembers, twice":    {"", true, ErrUncertain},
		"a cause that we don't know": {"lost 1 unknown\n", false, ErrLost},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 2, nil)
			l := locker(t, Options{Locks: []string{"x"}}, f)
			if err := l.Lock(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			n := 0
			f.setIntercept(func(q transport.Request, w io.Writer) bool {
				if q.Verb != transport.VerbUnlock {
					return false
				}
				if n++; n == 1 {
					f.table.free("x")
					if tt.twice {
						giveUp()
					} else {
						f.cut()
					}
					return true
				}
				_, _ = io.WriteString(w, tt.answered)
				_, _ = w.Write(transport.Status{Fault: &transport.Fault{Word: transport.WordLost}}.Append(nil, 2))
				return true
			})
			err := l.Unlock(ctx)
			if tt.twice {
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("without an answer: %v", err)
				}
				err = l.Unlock(t.Context())
			}
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			f.setIntercept(nil)
			if err := l.Unlock(t.Context()); err != nil {
				t.Errorf("something is left to be released: %v", err)
			}
			if err := l.Lock(t.Context()); err != nil {
				t.Errorf("locked again: %v", err)
			}
		})
	}
}

// TestUnlockOfWhatWasLost asks once: then there is nothing that could not be known.
func TestUnlockOfWhatWasLost(t *testing.T) {
	for _, said := range []string{"", "lost 1 owner\n", "lost 1 limit\n"} {
		f := newFake(t, 2, nil)
		l := locker(t, Options{Locks: []string{"x"}}, f)
		if err := l.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.setIntercept(func(q transport.Request, w io.Writer) bool {
			if q.Verb != transport.VerbUnlock {
				return false
			}
			_, _ = io.WriteString(w, said)
			_, _ = w.Write(transport.Status{Fault: &transport.Fault{Word: transport.WordLost}}.Append(nil, 2))
			return true
		})
		if err := l.Unlock(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("told %q: %v", said, err)
		}
	}
}

func TestUnlockWithoutAServer(t *testing.T) {
	f := newFake(t, 2, nil)
	l := locker(t, Options{Locks: []string{"x"}}, f)
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.setDown(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); err == nil {
		t.Error("released by nobody")
	}
	if l.Locked() {
		t.Error("locked though the outcome is unknown")
	}
	f.setDown(false)
	if err := l.Unlock(t.Context()); err != nil || f.table.owner("x") != "" {
		t.Errorf("the second try: %v, owner %q", err, f.table.owner("x"))
	}
}

func TestNoServer(t *testing.T) {
	f := newFake(t, 2, nil)
	f.ln.Close()
	var down error
	retries := 0
	l := locker(t, Options{ConnectTries: 3, Hooks: Hooks{
		Down:  func(err error) { down = err },
		Retry: func(time.Duration, error) { retries++ },
	}}, f)
	err := l.Lock(t.Context())
	if !errors.Is(err, ErrNoServer) || down == nil || retries != 2 {
		t.Errorf("%v, hook %v, %d retries", err, down, retries)
	}
	if !strings.Contains(err.Error(), f.addr()) {
		t.Errorf("it does not say where: %v", err)
	}
	if h := l.PingStatus(t.Context()); h.OK || !strings.HasPrefix(h.Status, "No response from lockerd on ") {
		t.Errorf("%+v", h)
	}
}

func TestExtrasAreNotDroppedByAnOldServer(t *testing.T) {
	f := newFake(t, 1, nil)
	for name, o := range map[string]Options{
		"shared": {Shared: true},
		"slots":  {Slots: 2},
		"all":    {Locks: []string{"a", "b"}, All: true},
		"lease":  {Lease: time.Minute},
		"fence":  {NeedFence: true},
	} {
		if err := locker(t, o, f).Lock(t.Context()); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(f.requests(transport.VerbLock)); n != 0 {
		t.Errorf("%d locks were asked for", n)
	}
	if _, err := locker(t, Options{}, f).Table(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Table: %v", err)
	}
}

func TestAnswersThatAreNoGrant(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		want   error
	}{
		"not for us":         {"owner other\nlocked 1\nlockname x\nfence 7\n\n\n", ErrRefused},
		"another lock":       {"owner me\nlocked 1\nlockname y\nfence 7\n\n\n", ErrRefused},
		"no lock":            {"owner me\nlocked 1\nfence 7\n\n\n", ErrRefused},
		"no fence":           {"owner me\nlocked 1\nlockname x\n\n\n", ErrRefused},
		"two locks":          {"owner me\nlocked 1\nlockname x\nlockname y\nfence 7\n\n\n", ErrRefused},
		"not locked":         {"owner other\nlocked 0\n\n\n", ErrNoServer},
		"half a block":       {"owner me\nlocked 1\nlockname x\n", ErrNoServer},
		"empty":              {"", ErrNoServer},
		"bad number":         {"owner me\nlocked 1\nlockname x\nfence -1\n\n\n", ErrNoServer},
		"endless line":       {"owner " + strings.Repeat("x", transport.MaxReplyLine+1), ErrNoServer},
		"refused":            {"owner \nlocked 0\nerror refused has 2 slots\n\n\n", ErrRefused},
		"bad request":        {"owner \nlocked 0\nerror bad_request what\n\n\n", ErrRefused},
		"superseded":         {"owner \nlocked 0\nerror superseded\n\n\n", ErrSuperseded},
		"timeout":            {"owner \nlocked 0\nerror timeout\n\n\n", ErrTimeout},
		"a word of tomorrow": {"owner \nlocked 0\nerror frobbed\n\n\n", ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 2, nil)
			f.setIntercept(func(q transport.Request, w io.Writer) bool {
				if q.Verb != transport.VerbLock {
					return false
				}
				_, _ = io.WriteString(w, tc.answer)
				go func() { time.Sleep(20 * time.Millisecond); f.cut() }()
				return true
			})
			l := locker(t, Options{Locks: []string{"x"}, User: "me"}, f)
			if err := l.Lock(t.Context()); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if l.Locked() {
				t.Error("locked")
			}
		})
	}
}

func TestNoLeaderIsAskedAgain(t *testing.T) {
	f := newFake(t, 2, nil)
	n := 0
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		if q.Verb != transport.VerbLock {
			return false
		}
		if n++; n > 3 {
			return false
		}
		_, _ = io.WriteString(w, "owner \nlocked 0\nerror no_leader 1 of 3 servers reachable\n\n\n")
		return true
	})
	l := locker(t, Options{ConnectTries: 1}, f)
	if err := l.Lock(t.Context()); err != nil || n != 4 {
		t.Errorf("%v after %d requests", err, n)
	}
}

func TestTryDoesNotWaitForALeaderForLong(t *testing.T) {
	f := newFake(t, 2, nil)
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		if q.Verb == transport.VerbLock {
			_, _ = io.WriteString(w, "owner \nlocked 0\nerror no_leader 1 of 3 servers reachable\n\n\n")
		}
		return q.Verb == transport.VerbLock
	})
	l := locker(t, Options{ConnectTries: 1, Try: true}, f)
	start := time.Now()
	err := l.Lock(t.Context())
	if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), "1 of 3 servers reachable") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 2*electionTime {
		t.Errorf("took %v", d)
	}
}

func TestAutounlockCheck(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	pid := int32(dead.Process.Pid) // a zombie until we wait for it
	defer func() { _ = dead.Wait() }()
	until(t, "it is a zombie", func() bool { return isDead(int(pid)) })
	for _, proto := range []int{1, 2} {
		f := newFake(t, proto, nil)
		f.table.hold("x", "other")
		sent := false
		f.setIntercept(func(q transport.Request, w io.Writer) bool {
			if q.Verb == transport.VerbLock && !sent {
				sent = true
				var b []byte
				if proto == 2 {
					b = transport.AppendProto(b, "fake")
				}
				b = transport.AppendWaiting(b, "other", 0)
				b = transport.AppendCheck(b, "x", FQDN(), int32(os.Getpid())) // alive
				b = transport.AppendCheck(b, "x", "elsewhere", pid)
				b = transport.AppendCheck(b, "x", FQDN(), pid)
				b = transport.AppendCheck(b, "x", FQDN(), pid)
				b = append(b, "autounlock_check x "+FQDN()+" 1\n"...) // a server without DEAD_PID
				_, _ = w.Write(b)
				return true
			}
			return false
		})
		l := locker(t, Options{Locks: []string{"x"}, Autounlock: true, WaitLimit: 300 * time.Millisecond}, f)
		_ = l.Lock(t.Context())
		q := f.requests(transport.VerbDeadPID)
		if len(q) != 1 || q[0].DeadHost != FQDN() || q[0].DeadPID != pid {
			t.Errorf("proto %d: DEAD_PID requests %+v", proto, q)
		}
	}
}

func TestQueries(t *testing.T) {
	for _, proto := range []int{1, 2} {
		f := newFake(t, proto, nil)
		l := locker(t, Options{Locks: []string{"x"}}, f)
		if o, err := l.Owner(t.Context()); o != "" || err != nil {
			t.Errorf("proto %d: owner %q, %v", proto, o, err)
		}
		f.table.hold("x", "other")
		if o, err := l.Owner(t.Context()); o != "other" || err != nil {
			t.Errorf("proto %d: owner %q, %v", proto, o, err)
		}
		list, err := l.LockList(t.Context())
		if err != nil || len(list) != 1 || list[0] != (Entry{"x", "other"}) {
			t.Errorf("proto %d: list %v, %v", proto, list, err)
		}
		if h := l.PingStatus(t.Context()); !h.OK || !strings.HasSuffix(h.Status, " second response on "+f.addr()) {
			t.Errorf("proto %d: %+v", proto, h)
		}
		if proto == 2 {
			table, err := l.Table(t.Context())
			if err != nil || len(table.Holds) != 1 || table.Holds[0].Owner != "other" || table.Holds[0].Fence != 1 {
				t.Errorf("table %+v, %v", table, err)
			}
		}
	}
}

func TestTableThatIsNoJSON(t *testing.T) {
	f := newFake(t, 2, nil)
	f.setIntercept(func(q transport.Request, w io.Writer) bool {
		_, _ = io.WriteString(w, "hold {\"lock\":\n\n")
		return q.Verb == transport.VerbHolds
	})
	if _, err := locker(t, Options{}, f).Table(t.Context()); !errors.Is(err, transport.ErrReply) {
		t.Errorf("got %v", err)
	}
}

func TestClose(t *testing.T) {
	f := newFake(t, 2, nil)
	for _, tc := range []struct {
		name string
		o    Options
		kept bool
	}{
		{"releases", Options{Locks: []string{"x"}}, false},
		{"keeps when told to", Options{Locks: []string{"y"}, KeepOnClose: true}, true},
		{"keeps what another process owns", Options{Locks: []string{"z"}, PID: os.Getppid()}, true},
	} {
		l := locker(t, tc.o, f)
		if err := l.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if kept := f.table.owner(tc.o.Locks[0]) != ""; kept != tc.kept {
			t.Errorf("%s: kept %v", tc.name, kept)
		}
		if err := l.Lock(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Lock after Close: %v", tc.name, err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: the second Close: %v", tc.name, err)
		}
	}
}

func TestVerboseLines(t *testing.T) {
	f := newFake(t, 2, nil)
	f.table.hold("x", "other")
	var text strings.Builder
	l := locker(t, Options{Locks: []string{"x"}, Verbose: &text}, f)
	done := make(chan error, 1)
	go func() { done <- l.Lock(t.Context()) }()
	until(t, "it waits", func() bool { return f.table.waiters("x") == 1 })
	f.table.free("x")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := strings.Split(text.String(), "\n")
	if len(got) != 3 || !strings.HasPrefix(got[0], "Waiting for lock from other at ") || !strings.HasPrefix(got[1], "Obtained lock at ") {
		t.Errorf("got %q", got)
	}
}

func TestIsDead(t *testing.T) {
	if isDead(os.Getpid()) || isDead(1) || isDead(0) || isDead(-1) {
		t.Error("somebody living is dead")
	}
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if isDead(c.Process.Pid) {
		t.Error("a sleeper is dead")
	}
	_ = c.Process.Signal(syscall.SIGKILL)
	until(t, "the zombie is dead", func() bool { return isDead(c.Process.Pid) })
	_ = c.Wait()
	if !isDead(c.Process.Pid) {
		t.Error("a process that was waited for lives")
	}
}
