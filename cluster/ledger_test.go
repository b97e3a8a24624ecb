package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// paperRoute notes what it is given.
type paperRoute struct {
	mu  sync.Mutex // the ledger proposes from its timers too
	got []fsm.Proposal
}

func (r *paperRoute) propose(p fsm.Proposal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, p)
}

// take returns what has been proposed since the last call.
func (r *paperRoute) take() []fsm.Proposal {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

// ledgerTest is a ledger that has joined as incarnation 7, and a client of it.
type ledgerTest struct {
	t     *testing.T
	l     *ledger
	route *paperRoute
	claim *Claim
	told  []string // answers and news, in order
}

func newLedgerTest(t *testing.T) *ledgerTest {
	lt := &ledgerTest{t: t, l: newLedger("n"), route: &paperRoute{}}
	lt.l.setRoute(lt.route)
	lt.want("join", fsm.NodeJoin{Name: "n", Nonce: lt.l.nonce})
	lt.join(7)
	return lt
}

func (lt *ledgerTest) join(inc fsm.Incarnation) { lt.l.answer(fsm.Ask{}, fsm.Result{Node: inc}) }

func (lt *ledgerTest) news(e fsm.Event) {
	lt.told = append(lt.told, fmt.Sprintf("%v %d", e.Kind, e.Fence))
}

var amy = fsm.Acquire{Owner: "amy", ID: fsm.RequestID{1}, Locks: []string{"a"}, Block: true}

func (lt *ledgerTest) acquire() {
	lt.claim = &Claim{ledger: lt.l, request: amy, notify: lt.news}
	lt.l.add(&call{command: amy, claim: lt.claim, finish: func(_ fsm.Ask, res fsm.Result) {
		lt.told = append(lt.told, fmt.Sprintf("answer %v %d", res.Code, res.Fence))
	}})
}

func (lt *ledgerTest) answer(inc fsm.Incarnation, seq uint64, res fsm.Result) {
	lt.l.answer(fsm.Ask{Node: inc, Seq: seq}, res)
}

func (lt *ledgerTest) event(e fsm.Event, inc fsm.Incarnation, seq uint64) {
	e.Ask = fsm.Ask{Node: inc, Seq: seq}
	lt.l.deliver([]fsm.Event{e})
}

// want checks what has been proposed since the last time.
func (lt *ledgerTest) want(when string, commands ...fsm.Command) {
	lt.t.Helper()
	var got []fsm.Command
	for _, p := range lt.route.take() {
		got = append(got, p.Command)
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", commands) {
		lt.t.Errorf("%s: proposed %+v, want %+v", when, got, commands)
	}
}

func (lt *ledgerTest) heard(when string, told ...string) {
	lt.t.Helper()
	if !slices.Equal(lt.told, told) {
		lt.t.Errorf("%s: the client was told %q, want %q", when, lt.told, told)
	}
	lt.told = nil
}

var (
	evGranted    = fsm.Event{Kind: fsm.EventGranted, Waited: true, Fence: 5, Locks: []string{"a"}}
	evAtOnce     = fsm.Event{Kind: fsm.EventGranted, Fence: 5, Locks: []string{"a"}}
	evLimit      = fsm.Event{Kind: fsm.EventReleased, Cause: fsm.CauseLimit, Fence: 5, Locks: []string{"a"}}
	evReleased   = fsm.Event{Kind: fsm.EventReleased, Cause: fsm.CauseOwner, Fence: 5, Locks: []string{"a"}}
	evWithdrawn  = fsm.Event{Kind: fsm.EventWithdrawn, Cause: fsm.CauseOwner}
	evSuperseded = fsm.Event{Kind: fsm.EventSuperseded}
	evSuspended  = fsm.Event{Kind: fsm.EventSuspended, Fence: 5, Locks: []string{"a"}}
	evNodeGone   = fsm.Event{Kind: fsm.EventWithdrawn, Cause: fsm.CauseNodeGone}

	resGranted = fsm.Result{Code: fsm.Granted, Fence: 5, Locks: []string{"a"}}
	resQueued  = fsm.Result{Code: fsm.Queued, Ticket: 3}
	resDone    = fsm.Result{Code: fsm.Done}
)

// TestNewsBeforeTheAnswer has the events of a request come before its answer, as
// they do when the answer was lost with a leader and the request is asked again.
func TestNewsBeforeTheAnswer(t *testing.T) {
	tests := []struct {
		name   string
		events []fsm.Event
		answer fsm.Result
		told   []string
		again  bool // it is asked once more, as a new request
	}{
		{"granted", []fsm.Event{evGranted}, resQueued, []string{"answer queued 0", "granted 5"}, false},
		{"granted, and said so", []fsm.Event{evGranted}, resGranted, []string{"answer granted 5"}, false},
		{"heard of twice", []fsm.Event{evGranted, evGranted, evLimit, evLimit}, resQueued, []string{"answer queued 0", "granted 5", "released 5"}, false},
		{"lost", []fsm.Event{evAtOnce, evLimit}, resGranted, []string{"answer granted 5", "released 5"}, false},
		{"released by its owner", []fsm.Event{evAtOnce, evReleased}, resDone, []string{"answer granted 5"}, false},
		{"withdrawn by its owner", []fsm.Event{evWithdrawn}, resDone, []string{"answer queued 0", "withdrawn 0"}, false},
		{"superseded", []fsm.Event{evAtOnce, evSuperseded}, resDone, []string{"answer queued 0", "superseded 0"}, false},
		{"suspended", []fsm.Event{evGranted, evSuspended}, resQueued, []string{"answer queued 0", "granted 5", "suspended 5"}, false},
		{"suspended unheard", []fsm.Event{evAtOnce, evSuspended}, resDone, nil, true},
		{"lost unheard", []fsm.Event{evAtOnce, evLimit}, resDone, nil, true},
		{"lost after a wait, unheard", []fsm.Event{evGranted, evLimit}, resDone, nil, true},
		{"its loss not known here", []fsm.Event{evGranted}, resDone, nil, true},
		{"over, and nothing known here", nil, resDone, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lt := newLedgerTest(t)
			lt.acquire()
			lt.want("at first", amy)
			for _, e := range tt.events {
				lt.event(e, 7, 1)
			}
			lt.heard("before the answer")
			lt.answer(7, 1, tt.answer)
			lt.heard("after the answer", tt.told...)
			if !tt.again {
				lt.want("after the answer")
				return
			}
			lt.want("after the answer", amy)
			lt.event(evLimit, 7, 1) // of the old request
			lt.answer(7, 2, resQueued)
			lt.event(evGranted, 7, 2)
			lt.heard("when asked again", "answer queued 0", "granted 5")
		})
	}
}

// TestLostIncarnation has the cluster give up the node, which learns of it in
// different ways and at different times.
func TestLostIncarnation(t *testing.T) {
	attach := fsm.Renew{Owner: "amy", Fence: 5, Attach: true}
	undo := fsm.Withdraw{Ask: fsm.Ask{Node: 7, Seq: 1}}
	waits := func(lt *ledgerTest) { lt.acquire(); lt.answer(7, 1, resQueued); lt.event(evNodeGone, 7, 1) }
	holds := func(lt *ledgerTest) { lt.acquire(); lt.answer(7, 1, resGranted); lt.event(evNodeGone, 7, 99) }
	tests := []struct {
		name  string
		do    func(lt *ledgerTest) // before the node joins again
		table standing             // of the claim, then
		again []fsm.Command        // under the new incarnation
		then  fsm.Result           // to the first of them
		told  []string
		after []fsm.Command
	}{
		{"a wait", waits, standing{}, []fsm.Command{amy}, resGranted, []string{"answer queued 0", "granted 5"}, nil},
		{"a wait granted unheard", waits, standing{Fence: 5, Locks: []string{"a"}}, []fsm.Command{attach}, resDone, []string{"answer queued 0", "granted 5"}, nil},
		{"a wait that is elsewhere", waits, standing{Heir: true}, nil, resDone, []string{"answer queued 0", "superseded 0"}, nil},
		{
			"a wait that is refused then", waits,
			standing{},
			[]fsm.Command{amy},
			fsm.Result{Code: fsm.Refused, Reason: "no"},
			[]string{"answer queued 0", "withdrawn 0"},
			nil,
		},
		{"a hold", holds, standing{Fence: 5}, []fsm.Command{attach}, resDone, []string{"answer granted 5"}, nil},
		{"a hold that is gone", holds, standing{}, nil, resDone, []string{"answer granted 5", "released 5"}, nil},
		{"a hold that is elsewhere", holds, standing{Heir: true}, nil, resDone, []string{"answer granted 5", "superseded 5"}, nil},
		{
			"a hold that is gone a moment later", holds,
			standing{Fence: 5},
			[]fsm.Command{attach},
			fsm.Result{Code: fsm.NotHeld},
			[]string{"answer granted 5", "released 5"},
			nil,
		},
		{
			"an open request",
			func(lt *ledgerTest) { lt.acquire(); lt.answer(7, 1, fsm.Result{Code: fsm.Stranger}) },
			standing{},
			[]fsm.Command{amy},
			resGranted,
			[]string{"answer granted 5"},
			nil,
		},
		{
			"an open request whose client goes meanwhile",
			func(lt *ledgerTest) {
				lt.acquire()
				lt.answer(7, 1, fsm.Result{Code: fsm.Stranger})
				lt.claim.Cancel()
			},
			// It may have been granted unheard, which only the claimant's own request finds.
			standing{},
			[]fsm.Command{amy},
			resGranted, nil,
			[]fsm.Command{fsm.Withdraw{Ask: fsm.Ask{Node: 8, Seq: 1}}},
		},
		{
			"another request, and a hold",
			func(lt *ledgerTest) {
				lt.acquire()
				lt.answer(7, 1, resGranted)
				lt.l.add(&call{command: fsm.Tick{}})
				lt.answer(7, 2, fsm.Result{Code: fsm.Stranger})
			},
			standing{Fence: 5},
			[]fsm.Command{fsm.Tick{}, attach},
			resDone,
			[]string{"answer granted 5"},
			nil,
		},
		{
			"a wait whose client goes meanwhile",
			func(lt *ledgerTest) { waits(lt); lt.claim.Cancel() },
			standing{},
			[]fsm.Command{undo},
			resDone,
			[]string{"answer queued 0"},
			nil,
		},
		{
			"a hold whose client goes meanwhile",
			func(lt *ledgerTest) { holds(lt); lt.claim.Cancel() },
			standing{Fence: 5},
			[]fsm.Command{undo},
			resDone,
			[]string{"answer granted 5"},
			nil,
		},
		{
			"a hold that is delivered meanwhile",
			func(lt *ledgerTest) { holds(lt); lt.claim.Forget() },
			standing{Fence: 5},
			nil, resDone,
			[]string{"answer granted 5"},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lt := newLedgerTest(t)
			tt.do(lt)
			lt.route.take()
			lt.join(8)
			list := lt.l.parked()
			for i := range list {
				list[i].Fence, list[i].Heir = tt.table.Fence, tt.table.Heir
			}
			lt.l.reconcile(append(list, list...))
			lt.want("in the new incarnation", tt.again...)
			lt.answer(7, 1, resGranted) // late, and of no interest
			lt.answer(8, 1, tt.then)
			lt.want("after its answer", tt.after...)
			lt.heard("in all", tt.told...)
			if len(lt.l.adrift) > 0 {
				t.Error("the claim is adrift still")
			}
		})
	}
}

// TestAReleaseAskedForAgain loses the answer to a release together with the
// incarnation that asked. Nobody can tell then whether the hold was ended by that
// first request; a release that was asked for once is told that there was no hold.
func TestAReleaseAskedForAgain(t *testing.T) {
	for _, command := range []fsm.Command{fsm.Release{Fence: 5}, fsm.Break{Locks: []string{"a"}, Fence: 5}} {
		for _, lost := range []bool{false, true} {
			lt := newLedgerTest(t)
			c := &call{command: command}
			c.finish = func(_ fsm.Ask, res fsm.Result) {
				lt.told = append(lt.told, fmt.Sprintf("answer %v, unsure: %v", res.Code, c.unsure(res)))
			}
			lt.l.add(c)
			lt.want("release", command)
			inc := fsm.Incarnation(7)
			if lost {
				lt.answer(7, 1, fsm.Result{Code: fsm.Stranger})
				lt.want("given up", fsm.NodeJoin{Name: "n", Nonce: lt.l.nonce})
				lt.join(8)
				lt.want("joined again", command)
				inc = 8
			}
			lt.answer(inc, 1, fsm.Result{Code: fsm.NotHeld})
			lt.heard("in the end", fmt.Sprintf("answer not-held, unsure: %v", lost))
		}
	}
}

// TestAHoldAttachedAnewIsReleasedByItsFence cancels what a Renew has kept, which a
// Withdraw would leave alone.
func TestAHoldAttachedAnewIsReleasedByItsFence(t *testing.T) {
	for _, answered := range []bool{true, false} {
		lt := newLedgerTest(t)
		lt.acquire()
		lt.answer(7, 1, resGranted)
		lt.event(evNodeGone, 7, 99)
		lt.join(8)
		list := lt.l.parked()
		list[0].Fence = 5
		lt.l.reconcile(list)
		lt.route.take()
		if answered {
			lt.answer(8, 1, resDone)
		}
		lt.claim.Cancel()
		if !answered {
			lt.want("before the answer")
			lt.answer(8, 1, resDone)
		}
		lt.want("in the end", fsm.Release{Owner: "amy", ID: amy.ID, Fence: 5})
	}
}

// TestCancel has the client go at every stage of its request.
func TestCancel(t *testing.T) {
	undo := fsm.Withdraw{Ask: fsm.Ask{Node: 7, Seq: 1}}
	t.Run("before it is sent", func(t *testing.T) {
		lt := &ledgerTest{t: t, l: newLedger("n"), route: &paperRoute{}}
		lt.acquire()
		lt.claim.Cancel()
		lt.l.setRoute(lt.route)
		lt.route.take()
		lt.join(7)
		lt.want("once joined")
	})
	t.Run("before its answer", func(t *testing.T) {
		lt := newLedgerTest(t)
		lt.acquire()
		lt.want("at first", amy)
		lt.claim.Cancel()
		lt.want("when cancelled", undo)
		lt.l.setRoute(lt.route)
		lt.want("with a new leader", undo) // and not the request
		lt.answer(7, 1, resGranted)
		lt.answer(7, 2, resDone)
		lt.heard("in all")
	})
	for _, stage := range []fsm.Result{resQueued, resGranted} {
		t.Run("when "+stage.Code.String(), func(t *testing.T) {
			lt := newLedgerTest(t)
			lt.acquire()
			lt.answer(7, 1, stage)
			lt.route.take()
			lt.told = nil
			lt.claim.Cancel()
			lt.claim.Cancel()
			lt.want("when cancelled", undo)
			lt.event(evGranted, 7, 1)
			lt.event(evLimit, 7, 1)
			lt.heard("afterwards")
		})
	}
	t.Run("and is waited for", func(t *testing.T) {
		lt := newLedgerTest(t)
		lt.acquire()
		lt.answer(7, 1, resQueued)
		lt.route.take()
		limited, end := context.WithCancel(t.Context())
		end()
		lt.claim.Withdraw(limited)
		lt.want("given up", undo)
		over := make(chan struct{})
		go func() { defer close(over); lt.claim.Withdraw(t.Context()) }()
		select {
		case <-over:
			t.Error("not waited for the cluster's answer")
		case <-time.After(20 * time.Millisecond):
		}
		lt.answer(7, 2, resDone)
		<-over
		lt.claim.Withdraw(t.Context())
		lt.want("in the end")
	})
	t.Run("when refused by a leader that did not see the first copy", func(t *testing.T) {
		lt := newLedgerTest(t)
		lt.acquire()
		lt.l.setRoute(lt.route)
		lt.want("twice", amy, amy)
		lt.answer(7, 1, fsm.Result{Code: fsm.Refused})
		lt.want("afterwards", undo)
	})
}

// TestReconcile compares claims with a table after events were missed.
func TestReconcile(t *testing.T) {
	tests := []struct {
		name  string
		state fsm.Result
		table standing
		told  []string
		again bool
	}{
		{"granted unheard", resQueued, standing{Fence: 5, Locks: []string{"a"}}, []string{"granted 5"}, false},
		{"still waiting", resQueued, standing{Waiting: true}, nil, false},
		{"neither", resQueued, standing{}, nil, true},
		{"still held", resGranted, standing{Known: 5, Fence: 5}, nil, false},
		{"lost unheard", resGranted, standing{Known: 5}, []string{"released 5"}, false},
		{"taken over unheard", resGranted, standing{Known: 5, Heir: true}, []string{"superseded 5"}, false},
		{"its wait taken over unheard", resQueued, standing{Heir: true}, []string{"superseded 0"}, false},
		{"compared too early", resGranted, standing{}, nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lt := newLedgerTest(t)
			lt.acquire()
			lt.answer(7, 1, tt.state)
			lt.told = nil
			lt.route.take()
			tt.table.Ask = fsm.Ask{Node: 7, Seq: 1}
			lt.l.reconcile([]standing{tt.table, tt.table})
			lt.heard("", tt.told...)
			if tt.again {
				lt.want("", amy)
			} else {
				lt.want("")
			}
		})
	}
}

// TestARefusedJoinIsTriedAgain refuses the node once.
func TestARefusedJoinIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lt := &ledgerTest{t: t, l: newLedger("n"), route: &paperRoute{}}
		lt.l.setRoute(lt.route)
		lt.route.take()
		lt.l.answer(fsm.Ask{}, fsm.Result{Code: fsm.Refused, Reason: "too many nodes have joined"})
		time.Sleep(2 * rebound)
		lt.want("after a rest", fsm.NodeJoin{Name: "n", Nonce: lt.l.nonce})
	})
}

// TestOpenCommandsAreBounded makes more commands than may be open at a time, and
// checks that each gets its turn, in order, under a floor that is true.
func TestOpenCommandsAreBounded(t *testing.T) {
	lt := newLedgerTest(t)
	const all = maxOpen + 1000
	answered := 0
	for range all {
		lt.l.add(&call{command: fsm.Tick{}, finish: func(fsm.Ask, fsm.Result) { answered++ }})
	}
	next := uint64(1)
	for next <= all {
		got := lt.route.take()
		if open := len(lt.l.open); open > maxOpen || len(got) == 0 {
			t.Fatalf("%d commands open, %d sent", open, len(got))
		}
		for _, p := range got {
			if p.Ask.Seq != next || p.Floor > p.Ask.Seq {
				t.Fatalf("command %d came as %+v with floor %d", next, p.Ask, p.Floor)
			}
			next++
			lt.l.answer(p.Ask, resDone)
		}
	}
	if answered != all || lt.l.floor != all+1 {
		t.Errorf("%d of %d answered, floor %d", answered, all, lt.l.floor)
	}
}
