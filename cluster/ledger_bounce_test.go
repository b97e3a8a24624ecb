package cluster

import (
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// unwilling is a route to a node that does not take commands yet.
type unwilling struct {
	ledger  *ledger
	mu      sync.Mutex
	takes   bool
	taken   int
	bounced int
}

func (r *unwilling) propose(fsm.Proposal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.takes {
		r.taken++
		return
	}
	go func() {
		r.ledger.bounce(r)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.bounced++
	}()
}

func (r *unwilling) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.takes = true
}

// await waits until a command has been bounced, or taken, by the route.
func (r *unwilling) await(t *testing.T, what string, count *int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		n := *count
		r.mu.Unlock()
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the command was never %s", what)
		}
	}
}

// A leader hands over: it bounces what it is sent from then on, and so does its
// successor until it is in office. The command must reach it after that.
func TestACommandIsSentAgainByTheNextRoute(t *testing.T) {
	l := newLedger("n")
	l.answer(fsm.Ask{}, fsm.Result{Node: 1})
	before, next := &unwilling{ledger: l}, &unwilling{ledger: l}
	l.setRoute(before)
	l.add(&call{command: fsm.Tick{}})
	before.await(t, "bounced", &before.bounced)
	// The rest that this calls for is not over when the next one bounces as well.
	l.setRoute(next)
	next.await(t, "bounced", &next.bounced)
	next.begin()
	next.await(t, "taken", &next.taken)
}

// The first request to join is answered twice, the second time when the incarnation that
// it was given is over. Under that one nothing must be asked any more: numbers would come
// again, and old answers would be taken for those to new requests.
func TestALateAnswerToAJoin(t *testing.T) {
	l := newLedger("n")
	l.answer(fsm.Ask{}, fsm.Result{Node: 1})
	l.givenUp(1)
	l.answer(fsm.Ask{}, fsm.Result{Node: 1})
	if inc := l.incarnation(); inc != 0 {
		t.Errorf("joined as %d again", inc)
	}
	l.answer(fsm.Ask{}, fsm.Result{Node: 2})
	if inc := l.incarnation(); inc != 2 {
		t.Errorf("joined as %d, want 2", inc)
	}
}
