package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// tickEvery bounds how much counted time an election can lose while some hold
	// has a deadline.
	tickEvery = 5 * time.Second

	reapEvery = time.Second

	// settle is the pause between two looks whether Raft has done with the last hand-over.
	settle = 5 * time.Millisecond
)

// watchLeadership follows Raft's word on whether this node leads. Raft waits for each
// word to be taken, so it is only noted here and acted upon by serveTerms.
func (n *Node) watchLeadership(notify <-chan bool) {
	var mu sync.Mutex
	leads := false
	turn := make(chan struct{}, 1)
	// Not by run, which starts nothing when the node has been stopped meanwhile:
	// whoever stops it waits for the end of the terms.
	var serving sync.WaitGroup
	serving.Go(func() {
		n.serveTerms(turn, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return leads
		})
	})
	defer serving.Wait()
	for {
		select {
		case <-n.ctx.Done():
			return
		case v := <-notify:
			mu.Lock()
			leads = v
			mu.Unlock()
			select {
			case turn <- struct{}{}:
			default:
			}
		}
	}
}

// serveTerms runs one term after another, and never two at once.
func (n *Node) serveTerms(turn <-chan struct{}, leads func() bool) {
	// Raft answers nobody any more once it has shut down, so Close waits here first.
	defer close(n.terms)
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-turn:
		}
		if n.ctx.Err() != nil {
			return
		}
		end()
		end = func() {}
		if !leads() {
			continue
		}
		ctx, cancel := context.WithCancel(n.ctx)
		var over sync.WaitGroup
		over.Go(func() { n.term(ctx) })
		end = func() {
			cancel()
			over.Wait()
		}
	}
}

// term is one term in office: from the first entry of its own to ctx's end.
func (n *Node) term(ctx context.Context) {
	// Until an entry of this term is applied, the table may lack what earlier
	// leaders have committed and answered.
	err := n.raft.Barrier(0).Error()
	for errors.Is(err, raft.ErrLeadershipTransferInProgress) && ctx.Err() == nil {
		// Of an earlier term: Raft may notice the end of that only when leadership
		// has come back already.
		pause(ctx, settle)
		err = n.raft.Barrier(0).Error()
	}
	if err != nil {
		n.log.Warn("elected, but not in office", "error", err)
		return
	}
	term := n.raft.CurrentTerm()
	var base fsm.Millis
	n.replica.view(func(m *fsm.Machine) { base = m.Now() })
	known := n.callRoll(base)
	o := newOffice(n.raft, term, base)
	o.refuse = func(c fsm.Command) (string, bool) { return n.refuse(o, c) }
	o.reads = &reads{
		committed: n.committed,
		verify:    n.verifyLeader,
		run:       n.run,
	}
	var jobs sync.WaitGroup
	jobs.Go(func() { o.run(ctx) })
	jobs.Go(func() { n.tick(ctx, o) })
	jobs.Go(func() { n.reap(ctx, o) })
	jobs.Go(func() { n.attend(ctx, o, known) })
	jobs.Go(func() { n.reconcileMembers(ctx, o) })
	jobs.Go(func() { n.poll(ctx, o) })
	n.office.Store(o)
	n.reroute()
	n.log.Info("in office", "term", term)
	<-ctx.Done()
	n.office.Store(nil)
	n.reroute()
	jobs.Wait()
	n.log.Info("out of office", "term", term)
}

// tick moves replicated time when a hold is due to end, and every few seconds
// while any hold has an end to come.
func (n *Node) tick(ctx context.Context, o *office) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.applied:
		case <-timer.C:
			if n.tickDue(o.now()) {
				if _, err := o.do(ctx, fsm.Tick{}); err != nil && ctx.Err() == nil && !errors.Is(err, errOutOfOffice) {
					n.log.Warn("time not moved on", "error", err)
				}
			}
		}
		if due, ok := n.deadline(); ok {
			wait := tickEvery
			if now := o.now(); due <= now {
				wait = 0
			} else if d := time.Duration(due-now) * time.Millisecond; d < wait {
				wait = d
			}
			timer.Reset(wait)
		}
	}
}

// tickDue reports whether a hold has come to its end, or too much time is counted
// in the leader's head alone.
func (n *Node) tickDue(now fsm.Millis) (due bool) {
	n.replica.view(func(m *fsm.Machine) {
		end, ok := m.NextDeadline()
		due = ok && (end <= now || now >= m.Now()+fsm.Millis(tickEvery/time.Millisecond))
	})
	return due
}

func (n *Node) deadline() (due fsm.Millis, ok bool) {
	n.replica.view(func(m *fsm.Machine) { due, ok = m.NextDeadline() })
	return due, ok
}

// reap ends the incarnations that have not been in touch for Config.NodeGrace.
// Each gets the full grace from the moment this leader took office, or from its
// beginning: it names itself to us only a while after the table has given it out.
func (n *Node) reap(ctx context.Context, o *office) {
	since := make(map[fsm.Incarnation]time.Time) // since when this leader knows it
	t := time.NewTicker(reapEvery)
	defer t.Stop()
	for {
		var nodes []fsm.Node
		n.replica.view(func(m *fsm.Machine) { nodes = m.Nodes() })
		own := n.ledger.incarnation()
		alive := make(map[fsm.Incarnation]bool, len(nodes))
		for _, node := range nodes {
			alive[node.Incarnation] = true
			if since[node.Incarnation].IsZero() {
				since[node.Incarnation] = time.Now()
			}
			last := n.peers.lastHeard(node.Incarnation)
			if last.Before(since[node.Incarnation]) {
				last = since[node.Incarnation]
			}
			if node.Incarnation == own || time.Since(last) < n.cfg.NodeGrace {
				continue
			}
			n.log.Info("node out of touch: its clients' waits end", "node", node.Name, "incarnation", node.Incarnation)
			if _, err := o.do(ctx, fsm.NodeGone{Node: node.Incarnation}); err != nil {
				break
			}
		}
		n.peers.forget(alive)
		maps.DeleteFunc(since, func(inc fsm.Incarnation, _ time.Time) bool { return !alive[inc] })
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// refuse says why an office can't take a command at present, and whether another
// leader will soon.
func (n *Node) refuse(o *office, c fsm.Command) (reason string, soon bool) {
	if _, ok := c.(fsm.Acquire); !ok || !n.space.isLow() {
		return "", false
	}
	return fmt.Sprintf("the disk of leader %s is nearly full: only releases are taken", n.cfg.Name), n.space.yields(o.from)
}
