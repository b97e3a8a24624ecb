package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// Claim is one request for locks on behalf of a client, from the moment it is
// made until the client has been told of its end. Its fields belong to the ledger.
type Claim struct {
	ledger    *ledger
	request   fsm.Acquire // of an attached hold: its owner alone
	attach    bool        // made by Attach: the hold is not ours to undo
	ask       fsm.Ask     // the request's number of late; it changes when the node joins anew
	notify    func(fsm.Event)
	news      []fsm.Event   // came before the answer
	fence     fsm.Fence     // not zero while held, so far as we know
	renewed   bool          // ask is of a Renew, which the table does not withdraw a hold by
	ended     bool          // no news is wanted any more
	cancelled bool          // and nothing is to remain
	undone    chan struct{} // closed when the cluster has seen to that; nil while it is not asked to
}

// Acquire asks for locks. The result is Granted, Queued, Busy, Superseded or Refused. After
// Queued, notify is called once with EventGranted, EventWithdrawn or
// EventSuperseded; after a grant, at most once with EventReleased (for another
// cause than the owner's wish), EventSuspended or EventSuperseded. It must not block, and it may be
// called before Acquire returns. If err is not nil, the node sees to it that
// nothing remains of the request.
func (n *Node) Acquire(ctx context.Context, a fsm.Acquire, notify func(fsm.Event)) (*Claim, fsm.Result, error) {
	c := &Claim{ledger: n.ledger, request: a, notify: notify}
	res, err := n.submit(ctx, a, c)
	if err != nil {
		c.Cancel()
	}
	return c, res, err
}

// Attach proves that the owner of a hold lives, and has news of that hold come to
// notify from now on. The result is Done or NotHeld.
func (n *Node) Attach(ctx context.Context, owner string, fence fsm.Fence, notify func(fsm.Event)) (*Claim, fsm.Result, error) {
	c := &Claim{ledger: n.ledger, request: fsm.Acquire{Owner: owner}, attach: true, fence: fence, notify: notify}
	res, err := n.submit(ctx, fsm.Renew{Owner: owner, Fence: fence, Attach: true}, c)
	if err != nil {
		c.Forget()
		return nil, res, err
	}
	return c, res, nil
}

// Cancel undoes the request: its client has gone or given up. A wait is withdrawn;
// a hold is released, since its grant cannot have reached anyone. It returns at
// once; the node keeps at it until the cluster has answered.
func (c *Claim) Cancel() {
	l := c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.ended {
		return
	}
	l.end(c)
	c.cancelled = true
	if c.ask == (fsm.Ask{}) {
		return // not asked yet, and never to be
	}
	if open := l.open[c.ask.Seq]; open != nil && open.claim == c {
		if open.again {
			return // settle undoes what comes of it, and of the request before
		}
		// It must not go out any more: its client may have asked elsewhere meanwhile,
		// and would lose what it got there to a request nobody stands behind.
		l.close(open)
	} else if c.asking() {
		return // likewise
	}
	l.undo(c)
	l.number()
}

// Withdraw is Cancel that waits until the cluster has done it, or ctx ends. Where the
// request is about to be made anew, it is only then that it can be undone, and
// Withdraw does not wait.
func (c *Claim) Withdraw(ctx context.Context) {
	c.Cancel()
	c.ledger.mu.Lock()
	undone := c.undone
	c.ledger.mu.Unlock()
	if undone == nil {
		return
	}
	select {
	case <-undone:
	case <-ctx.Done():
	}
}

// asking reports whether the claim's next request waits for a number.
func (c *Claim) asking() bool {
	for _, e := range c.ledger.early {
		if e.claim == c {
			return true
		}
	}
	return false
}

// undo sees to it that nothing remains of what a claim has got.
func (l *ledger) undo(c *Claim) {
	undone := make(chan struct{})
	c.undone = undone
	undo := &call{command: fsm.Withdraw{Ask: c.ask}, finish: func(fsm.Ask, fsm.Result) { close(undone) }}
	if c.renewed {
		undo.command = fsm.Release{Owner: c.request.Owner, ID: c.request.ID, Fence: c.fence}
	}
	l.early = append(l.early, undo)
}

// Forget ends the notices. The hold, if there is one, stays.
func (c *Claim) Forget() {
	l := c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.ended {
		l.end(c)
	}
}

// end stops a claim's notices.
func (l *ledger) end(c *Claim) {
	c.ended = true
	if l.claims[c.ask.Seq] == c {
		delete(l.claims, c.ask.Seq)
	}
	delete(l.adrift, c.ask)
}

// settle notes what the answer to a claim's request says of it.
func (l *ledger) settle(open *call, res fsm.Result) {
	c := open.claim
	switch {
	case c.ended:
		if c.cancelled && res.Code != fsm.Busy && res.Code != fsm.NotHeld {
			l.undo(c)
		}
		return
	case res.Code == fsm.Refused && open.sent > 1 && !c.renewed && !c.attach:
		// It may be the leader who refuses, without the log; another copy of the
		// request, sent to the leader before, may yet be granted.
		l.undo(c)
	}
	switch res.Code {
	case fsm.Granted:
		c.fence = res.Fence
	case fsm.Queued, fsm.Done:
	default:
		l.end(c)
	}
}

// over makes the answer to a request that is over before it was answered, from the
// news of it. If it was granted and lost without the owner's doing, or if nothing
// is known, its client still waits: it is to be asked again.
func (c *Claim) over() (res fsm.Result, again bool) {
	if len(c.news) == 0 {
		return res, true
	}
	switch e := c.news[len(c.news)-1]; {
	case e.Kind == fsm.EventReleased && e.Cause == fsm.CauseOwner:
		return fsm.Result{Code: fsm.Granted, Fence: e.Fence, Locks: e.Locks}, false
	case e.Kind == fsm.EventReleased, e.Kind == fsm.EventSuspended, e.Kind == fsm.EventGranted:
		return res, true
	default:
		return fsm.Result{Code: fsm.Queued, Ticket: e.Ticket}, false
	}
}

// note keeps news that came before the answer.
func (c *Claim) note(e fsm.Event) {
	switch e.Kind {
	case fsm.EventGranted, fsm.EventReleased, fsm.EventSuspended, fsm.EventWithdrawn, fsm.EventSuperseded:
		c.news = append(c.news, e)
	}
}

// catchUp takes in the news that came before the answer, and returns what of it
// the client is to be told.
func (l *ledger) catchUp(c *Claim) []fsm.Event {
	var tell []fsm.Event
	for _, e := range c.news {
		if !c.ended && l.concerns(c, e) {
			tell = append(tell, e)
		}
	}
	c.news = nil
	return tell
}

// forgetNews drops what came for a request that is asked again.
func (c *Claim) forgetNews() {
	if c != nil {
		c.news = nil
	}
}

// again makes the command by which a claim survives the loss of its incarnation.
func (c *Claim) again() *call {
	if c.fence != 0 {
		c.renewed = true
		return &call{
			command: fsm.Renew{Owner: c.request.Owner, Fence: c.fence, Attach: true},
			claim:   c,
			again:   true,
			finish: func(_ fsm.Ask, res fsm.Result) {
				if res.Code != fsm.Done {
					kind := fsm.EventReleased
					if res.Code == fsm.NotHeld && res.Reason != "" {
						kind = fsm.EventSuspended
					}
					c.notify(fsm.Event{Kind: kind, Owner: c.request.Owner, Fence: c.fence})
				}
			},
		}
	}
	return &call{command: c.request, claim: c, again: true, finish: func(ask fsm.Ask, res fsm.Result) {
		switch res.Code {
		case fsm.Granted:
			c.notify(fsm.Event{Kind: fsm.EventGranted, Waited: true, Ask: ask, Owner: c.request.Owner, Locks: res.Locks, Fence: res.Fence})
		case fsm.Queued:
		case fsm.Superseded:
			c.notify(fsm.Event{Kind: fsm.EventSuperseded, Ask: ask, Owner: c.request.Owner})
		default:
			c.notify(fsm.Event{Kind: fsm.EventWithdrawn, Ask: ask, Owner: c.request.Owner, By: res.Reason})
		}
	}}
}

// deliver tells the claims of this node what has become of them. It is called
// with the same event more than once, by the leader's message and by the node's
// own log; only the first has an effect.
func (l *ledger) deliver(events []fsm.Event) {
	l.telling.Lock()
	defer l.telling.Unlock()
	var calls []func()
	l.mu.Lock()
	for _, e := range events {
		if e.Ask.Node != l.node || l.node == 0 {
			continue
		}
		if e.Kind == fsm.EventWithdrawn && e.Cause == fsm.CauseNodeGone {
			l.rejoin() // this node is who is gone; no request may be under way to tell it so
			continue
		}
		c := l.claims[e.Ask.Seq]
		switch {
		case c == nil:
		case l.open[e.Ask.Seq] != nil:
			c.note(e) // the answer comes first
		case l.concerns(c, e):
			calls = append(calls, func() { c.notify(e) })
		}
	}
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// concerns applies an event to a claim, and reports whether the client is to be told.
func (l *ledger) concerns(c *Claim, e fsm.Event) bool {
	switch e.Kind {
	case fsm.EventGranted:
		if !e.Waited || c.fence != 0 {
			return false
		}
		c.fence = e.Fence
		return true
	case fsm.EventReleased:
		l.end(c)
		return e.Cause != fsm.CauseOwner
	case fsm.EventWithdrawn, fsm.EventSuperseded, fsm.EventSuspended:
		l.end(c)
		return true
	}
	return false
}

// parked lists the claims whose requests have been answered, with what is known
// of them, for comparison with a table that is newer than that knowledge.
func (l *ledger) parked() []standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]standing, 0, len(l.claims)+len(l.adrift))
	for seq, c := range l.claims {
		if l.open[seq] == nil {
			list = append(list, c.standing())
		}
	}
	for _, c := range l.adrift {
		list = append(list, c.standing())
	}
	// New waits queue in the order of the old ones.
	slices.SortFunc(list, func(a, b standing) int {
		return cmp.Or(cmp.Compare(a.Ask.Node, b.Ask.Node), cmp.Compare(a.Ask.Seq, b.Ask.Seq))
	})
	return list
}

// standing is what a node knew of a request, and what a table says of it: held
// (Fence is not zero), waiting, or neither.
type standing struct {
	Ask   fsm.Ask
	Known fsm.Fence
	Owner string
	ID    fsm.RequestID
	Locks []string // asked for; held, if Fence is set

	Waiting bool
	Fence   fsm.Fence
	Heir    bool // a later request of the same claimant has it
	OnDisk  bool // the hold is suspended, and nobody has it
}

func (c *Claim) standing() standing {
	return standing{Ask: c.ask, Known: c.fence, Owner: c.request.Owner, ID: c.request.ID, Locks: c.request.Locks}
}

// look fills in what the table says.
func (s *standing) look(m *fsm.Machine) {
	hold, wait := m.Claim(s.Ask)
	heir, ok := m.Heir(s.Known, s.Owner, s.ID, s.Locks)
	s.Heir = ok && heir != s.Ask
	h := m.Hold(s.Known)
	s.OnDisk = h != nil && h.Suspended != nil
	if hold != nil {
		s.Fence, s.Locks = hold.Fence, hold.Locks
	}
	s.Waiting = wait != nil
}

// reconcile brings claims into line with the table after events have been missed:
// the log was replaced by a snapshot, the link to the leader was down, or the
// incarnation is over.
func (l *ledger) reconcile(table []standing) {
	l.telling.Lock()
	defer l.telling.Unlock()
	var calls []func()
	tell := func(c *Claim, kind fsm.EventKind, s standing) {
		e := fsm.Event{Kind: kind, Waited: kind == fsm.EventGranted, Ask: s.Ask, Owner: s.Owner, Locks: s.Locks, Fence: c.fence}
		calls = append(calls, func() { c.notify(e) })
	}
	l.mu.Lock()
	for _, s := range table {
		c := l.adrift[s.Ask]
		adrift := c != nil
		if !adrift && s.Ask.Node == l.node && l.open[s.Ask.Seq] == nil {
			c = l.claims[s.Ask.Seq]
		}
		if c == nil || c.fence != s.Known {
			continue // news has come by itself meanwhile
		}
		granted := s.Fence != 0 && c.fence == 0
		if granted {
			c.fence = s.Fence
			tell(c, fsm.EventGranted, s)
		}
		switch {
		case s.Fence != 0 && !adrift, s.Waiting && !adrift:
			// It is as it should be.
		case s.Fence != 0, s.Waiting:
			l.ask(c)
		case s.Heir:
			l.end(c)
			tell(c, fsm.EventSuperseded, s)
		case s.OnDisk:
			l.end(c)
			tell(c, fsm.EventSuspended, s)
		case c.fence != 0:
			l.end(c)
			tell(c, fsm.EventReleased, s)
		default:
			// It was granted and lost, or withdrawn, while we could not hear it. The
			// client still waits.
			l.ask(c)
		}
	}
	l.number()
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// ask asks again for what a claim waits for or holds.
func (l *ledger) ask(c *Claim) {
	if l.claims[c.ask.Seq] == c {
		delete(l.claims, c.ask.Seq)
	}
	delete(l.adrift, c.ask)
	l.early = append(l.early, c.again())
}

// errUnsure says that a hold is over, and that this is all that is known of it.
var errUnsure = errors.New("that hold is over, and this node was out of touch: whether it was ended by this request, or before it, is not known")

// submit proposes a command until it is answered, ctx ends, or there has been no
// leader for too long. Whatever the return, the command may yet be carried out.
func (n *Node) submit(ctx context.Context, cmd fsm.Command, claim *Claim) (fsm.Result, error) {
	// What the leader could not read would end the link to it, again and again.
	if err := fsm.Validate(cmd); err != nil {
		return fsm.Result{Code: fsm.Refused, Reason: err.Error()}, nil
	}
	if d := n.ledger.leaderless(); d > n.cfg.NoLeaderGrace {
		return fsm.Result{}, n.noLeader()
	}
	answered := make(chan fsm.Result, 1)
	c := &call{command: cmd, claim: claim, finish: func(_ fsm.Ask, res fsm.Result) { answered <- res }}
	n.ledger.add(c)
	patience := time.NewTimer(n.cfg.NoLeaderGrace)
	defer patience.Stop()
	for {
		select {
		case res := <-answered:
			if c.unsure(res) {
				return fsm.Result{}, errUnsure
			}
			return res, nil
		case <-ctx.Done():
			return fsm.Result{}, fmt.Errorf("wait for the cluster's answer: %w", context.Cause(ctx))
		case <-n.ctx.Done():
			return fsm.Result{}, ErrClosed
		case <-patience.C:
			d := n.ledger.leaderless()
			if d >= n.cfg.NoLeaderGrace {
				return fsm.Result{}, n.noLeader()
			}
			patience.Reset(n.cfg.NoLeaderGrace - d)
		}
	}
}
