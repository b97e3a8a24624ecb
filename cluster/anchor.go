package cluster

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

// An anchor is a client connection that a process and all it starts have inherited:
// it is open for as long as one of them lives, and so long the hold that it is of
// does not end with the process. Nothing else is changed by it: release, break,
// limits and leases end the hold as ever, and the anchor with it.
//
// Anchors are known to their node alone. What ends with this node's process, in
// good order or not, are the connections, so that the next start of the node finds
// the process dead and the hold unanchored.
type anchor struct {
	over func() // the hold is over; must not block
}

// neighbourWait bounds a question to another node of this host.
const neighbourWait = time.Second

var (
	errOtherHost  = faultf(transport.WordElsewhere, "the process does not run on this node's host")
	errUnwatching = faultf(transport.WordElsewhere, "this node watches no processes")
)

// Anchor keeps a hold from ending with its process p, until lift is called. It
// calls over when it learns that the hold is over, from any goroutine, and maybe
// before it returns. The hold's grant may have reached its client before it is in
// this node's table, so a fence that is not known yet is as good as any.
func (n *Node) Anchor(p fsm.Process, fence fsm.Fence, over func()) (lift func(), err error) {
	l := n.liveness
	switch {
	case l.procs == nil:
		return nil, errUnwatching
	case !l.place.has(p), l.place.outlived(p):
		return nil, errOtherHost
	}
	a := &anchor{over: over}
	l.mu.Lock()
	if l.anchors[fence] == nil {
		l.anchors[fence] = make(map[*anchor]struct{})
	}
	l.anchors[fence][a] = struct{}{}
	l.mu.Unlock()
	if n.replica != nil && n.replica.past(fence) {
		l.mu.Lock()
		l.overFence(fence)
		l.unlock()
	}
	return func() { l.lift(fence, a) }, nil
}

// past reports whether a fence has been given out and is held no more.
func (r *replica) past(fence fsm.Fence) (past bool) {
	r.view(func(m *fsm.Machine) {
		_, held := m.Heir(fence, "", fsm.RequestID{}, nil)
		past = !held && fence <= m.Counts().Fence
	})
	return past
}

// lift ends an anchor. After the last one of a hold, the hold ends with its
// process again, which may have ended long ago.
func (l *liveness) lift(f fsm.Fence, a *anchor) {
	l.mu.Lock()
	defer l.unlock()
	set := l.anchors[f]
	if _, ok := set[a]; !ok {
		return
	}
	delete(set, a)
	if len(set) > 0 {
		return
	}
	delete(l.anchors, f)
	if w := l.fences[f]; w != nil {
		l.report(w)
	}
}

// overFence drops a hold that is over, and its anchors.
func (l *liveness) overFence(f fsm.Fence) {
	l.dropFence(f)
	for a := range l.anchors[f] {
		l.cut = append(l.cut, a)
	}
	delete(l.anchors, f)
}

// unlock ends a change; the anchors of what it has found to be over hear of that.
func (l *liveness) unlock() {
	cut := l.cut
	l.cut = nil
	l.mu.Unlock()
	for _, a := range cut {
		a.over()
	}
}

// anchored picks the fences that have an anchor at this node.
func (l *liveness) anchored(fences []fsm.Fence) (list []fsm.Fence) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range fences {
		if l.anchors[f] != nil {
			list = append(list, f)
		}
	}
	return list
}

// unanchored leaves out the fences that have an anchor at this node, or at another
// one that watches the same processes: two nodes of one host both see a death, and
// only one of them has the connection.
func (n *Node) unanchored(ctx context.Context, fences []fsm.Fence) []fsm.Fence {
	if len(fences) == 0 {
		return fences
	}
	kept := n.liveness.anchored(fences)
	for _, l := range n.neighbours() {
		kept = append(kept, l.anchored(ctx, fences)...)
	}
	for _, p := range n.peers.agents(n.liveness.place.Boot) {
		kept = append(kept, p.anchored(ctx, fences)...)
	}
	return slices.DeleteFunc(slices.Clone(fences), func(f fsm.Fence) bool { return slices.Contains(kept, f) })
}

// neighbours are the servers in touch that watch the processes of this host too;
// none, where each host has one node.
func (n *Node) neighbours() (list []*link) {
	own := n.liveness.place.Boot
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		if own != "" && l.up() && l.boots() == own {
			list = append(list, l.link)
		}
	}
	return list
}

// anchored asks a neighbour for its anchors. Until it answers it may have any; once
// it is out of touch it counts as dead, and its anchors as closed.
func (l *link) anchored(ctx context.Context, fences []fsm.Fence) (list []fsm.Fence) {
	ctx, cancel := context.WithTimeout(ctx, neighbourWait)
	defer cancel()
	b, err := l.ask(ctx, askAnchors, mustJSON(fences))
	switch {
	case ctx.Err() != nil:
		return fences
	case err == nil:
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		l.log("anchors not known", "error", err)
		return nil
	}
	return list
}

// agents are the agents in touch with this server that watch the processes of a boot
// and pid namespace.
func (ps *peers) agents(boot string) (list []*peer) {
	own, _, _ := strings.Cut(boot, "/")
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.placed["/"+own] {
		if boot != "" && p.hello.Agent && p.hello.Place.Boot == boot {
			list = append(list, p)
		}
	}
	return list
}

// anchored is what link.anchored is for servers, by the connection that an agent has
// to this one.
func (p *peer) anchored(ctx context.Context, fences []fsm.Fence) []fsm.Fence {
	answer := make(chan []fsm.Fence, 1)
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	p.which[id] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.which, id)
	}()
	p.out.send(frameWhich, append(binary.AppendUvarint(nil, id), mustJSON(fences)...))
	t := time.NewTimer(neighbourWait)
	defer t.Stop()
	select {
	case list := <-answer:
		return list
	case <-p.gone:
		return nil
	case <-ctx.Done():
	case <-t.C:
	}
	return fences
}

// tells takes an agent's answer.
func (p *peer) tells(b []byte) error {
	id, list, err := decodeFences(b)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer := p.which[id]; answer != nil {
		delete(p.which, id)
		answer <- list
	}
	return nil
}

// tell answers a server's question for this node's anchors.
func (l *link) tell(b []byte) error {
	id, fences, err := decodeFences(b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	out := l.out
	l.mu.Unlock()
	if out != nil {
		out.send(frameAnchors, append(binary.AppendUvarint(nil, id), mustJSON(l.node.liveness.anchored(fences))...))
	}
	return nil
}

// decodeFences reads a frameWhich or a frameAnchors.
func decodeFences(b []byte) (id uint64, fences []fsm.Fence, err error) {
	if id, b, err = uvarint(b); err != nil {
		return 0, nil, err
	}
	if err := json.Unmarshal(b, &fences); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
	}
	return id, fences, nil
}
