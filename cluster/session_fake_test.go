package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/fsm"
)

// fakeNode is a node of one: a lock table with nothing around it. Its time stands
// still unless a test moves it.
type fakeNode struct {
	mu     sync.Mutex
	m      *fsm.Machine
	ended  endings
	now    fsm.Millis
	inc    fsm.Incarnation
	seq    uint64
	claims map[uint64]*fakeClaim
	dead   []fsm.Process

	anchors map[fsm.Fence][]func()
	lifted  []fsm.Fence

	fail  error         // what every call returns, if not nil
	stall chan struct{} // if not nil, Acquire hangs until it is closed or ctx ends
}

func newFakeNode(t testing.TB) *fakeNode {
	n := &fakeNode{m: fsm.New(), ended: make(endings, rememberedEnds), claims: make(map[uint64]*fakeClaim), anchors: make(map[fsm.Fence][]func())}
	out := n.m.Apply(fsm.Entry{Proposals: []fsm.Proposal{{Command: fsm.NodeJoin{Name: "n1", Nonce: [16]byte{1}}}}})
	n.inc = out.Results[0].Node
	t.Cleanup(func() {
		if err := n.m.Check(); err != nil {
			t.Error(err)
		}
	})
	return n
}

type fakeClaim struct {
	n      *fakeNode
	ask    fsm.Ask
	attach bool
	notify func(fsm.Event)
}

func (c *fakeClaim) Cancel() {
	c.Forget()
	if !c.attach {
		c.n.apply(fsm.Withdraw{Ask: c.ask}, nil)
	}
}

func (c *fakeClaim) Withdraw(context.Context) { c.Cancel() }

func (c *fakeClaim) Forget() {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	delete(c.n.claims, c.ask.Seq)
}

func (n *fakeNode) apply(c fsm.Command, claim *fakeClaim) fsm.Result {
	n.mu.Lock()
	n.seq++
	ask := fsm.Ask{Node: n.inc, Seq: n.seq}
	if claim != nil {
		claim.ask = ask
		n.claims[ask.Seq] = claim
	}
	out := n.m.Apply(fsm.Entry{Now: n.now, Proposals: []fsm.Proposal{{Ask: ask, Floor: ask.Seq, Command: c}}})
	n.ended.note(out.Events)
	var calls []func()
	for _, e := range out.Events {
		if e.Kind == fsm.EventReleased || e.Kind == fsm.EventSuspended {
			calls = append(calls, n.anchors[e.Fence]...)
		}
		cl := n.claims[e.Ask.Seq]
		if cl == nil {
			continue
		}
		switch e.Kind {
		case fsm.EventQueued, fsm.EventRenewed:
			continue
		case fsm.EventGranted:
			if !e.Waited {
				continue
			}
		default:
			delete(n.claims, e.Ask.Seq)
			if e.Kind == fsm.EventReleased && e.Cause == fsm.CauseOwner {
				continue
			}
		}
		calls = append(calls, func() { cl.notify(e) })
	}
	n.mu.Unlock()
	for _, f := range calls {
		f()
	}
	return out.Results[0]
}

func (n *fakeNode) Acquire(ctx context.Context, a fsm.Acquire, notify func(fsm.Event)) (sessionClaim, fsm.Result, error) {
	n.mu.Lock()
	fail, stall := n.fail, n.stall
	n.mu.Unlock()
	if fail != nil {
		return nil, fsm.Result{}, fail
	}
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return &fakeClaim{n: n, notify: notify}, fsm.Result{}, ctx.Err()
		}
	}
	c := &fakeClaim{n: n, notify: notify}
	return c, n.apply(a, c), nil
}

func (n *fakeNode) Attach(_ context.Context, owner string, fence fsm.Fence, notify func(fsm.Event)) (sessionClaim, fsm.Result, error) {
	c := &fakeClaim{n: n, notify: notify, attach: true}
	return c, n.apply(fsm.Renew{Owner: owner, Fence: fence, Attach: true}, c), n.failure()
}

func (n *fakeNode) Submit(_ context.Context, c fsm.Command) (fsm.Result, error) {
	if err := n.failure(); err != nil {
		return fsm.Result{}, err
	}
	return n.apply(c, nil), nil
}

func (n *fakeNode) Status(_ context.Context, owner string, locks []string) (fsm.Result, error) {
	if err := n.failure(); err != nil {
		return fsm.Result{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m.Status(owner, locks), nil
}

func (n *fakeNode) Ended(_ context.Context, fence fsm.Fence) (fsm.Cause, error) {
	if err := n.failure(); err != nil {
		return fsm.CauseNone, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ended.cause(fence), nil
}

func (n *fakeNode) Table(context.Context, bool) (Table, error) {
	if err := n.failure(); err != nil {
		return Table{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.m.Snapshot()
	return asTable(n.m.Now(), s), nil
}

// Dead takes the client's word for it.
func (n *fakeNode) Dead(_ context.Context, p fsm.Process) error {
	n.mu.Lock()
	n.dead = append(n.dead, p)
	holds, waits := n.m.ByProcess(p.Host, p.PID)
	n.mu.Unlock()
	gone := fsm.ProcessGone{Process: p}
	for _, h := range holds {
		gone.Fences = append(gone.Fences, h.Fence)
	}
	for _, w := range waits {
		gone.Tickets = append(gone.Tickets, w.Ticket)
	}
	n.apply(gone, nil)
	return nil
}

// Anchor knows processes of host h1 only, and closes an anchor with the hold.
func (n *fakeNode) Anchor(p fsm.Process, fence fsm.Fence, over func()) (func(), error) {
	if p.Host != "h1" {
		return nil, errOtherHost
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.anchors[fence] = append(n.anchors[fence], over)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.lifted = append(n.lifted, fence)
	}, nil
}

func (n *fakeNode) Name() string       { return "n1" }
func (n *fakeNode) Version() string    { return "2.0" }
func (n *fakeNode) Started() time.Time { return time.Unix(1700000000, 0) }

func (n *fakeNode) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fail
}

// advance moves the table's time.
func (n *fakeNode) advance(by fsm.Millis) {
	n.mu.Lock()
	n.now += by
	n.mu.Unlock()
	n.apply(fsm.Tick{}, nil)
}

func (n *fakeNode) counts() fsm.Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m.Counts()
}

func (n *fakeNode) queueLen(lock string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m.QueueLen(lock)
}

// holder is the owner of the first hold of a lock, or "".
func (n *fakeNode) holder(lock string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.m.Holders(lock); len(h) > 0 {
		return h[0].Owner
	}
	return ""
}

// startTestServer serves a fake node on a listener of its own.
func startTestServer(t testing.TB, n *fakeNode, network string, change func(*serverConfig)) (*server, net.Addr) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/socket"
	}
	ln, err := ListenClient(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg := serverConfig{Logger: hclog.NewNullLogger()}
	if change != nil {
		change(&cfg)
	}
	s := startServer(n, []net.Listener{ln}, cfg)
	t.Cleanup(s.close)
	return s, ln.Addr()
}

func dialTest(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(addr.Network(), addr.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// waitUntil waits for what must become true soon.
func waitUntil(what string, ok func() bool) error {
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

var errFake = errors.New("no leader: 1 of 3 servers reachable")
