package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

const (
	// maxPeers bounds connections of other nodes: a farm has thousands of agents.
	maxPeers = 20_000

	// peerSilence ends a peer's connection. Peers ping every second. A short one
	// keeps requests out that have been stuck in the network while their clients
	// gave up on them and went elsewhere.
	peerSilence = 3 * time.Second

	// maxPeerRequest bounds a frame from a peer. Nothing that a node asks for is
	// larger than a few entries' worth of commands.
	maxPeerRequest = 16 << 20
)

// peers are the connections that other nodes have to this server. Its roles: to
// say which incarnations are in touch, and to carry the news of the table to the
// nodes it concerns.
type peers struct {
	mu      sync.Mutex
	all     map[*peer]struct{}
	by      map[fsm.Incarnation]*peer
	placed  map[string][]*peer            // by the host names and the boot of what they watch
	contact map[fsm.Incarnation]time.Time // when we last heard of it
	latest  map[string]fsm.Incarnation    // of the nodes that are connected, by id
	turned  chan struct{}                 // holds a token after an incarnation has come in touch, or out of it
	losses  int                           // connections that have ended
	closed  bool
}

func newPeers() *peers {
	return &peers{
		all:     make(map[*peer]struct{}),
		by:      make(map[fsm.Incarnation]*peer),
		placed:  make(map[string][]*peer),
		contact: make(map[fsm.Incarnation]time.Time),
		latest:  make(map[string]fsm.Incarnation),
		turned:  make(chan struct{}, 1),
	}
}

// peer is one connection that another node has to this server.
type peer struct {
	node  *Node
	conn  net.Conn
	out   *outbox
	hello peerHello
	inc   fsm.Incarnation // of late; guarded by peers.mu
	gone  chan struct{}   // closed with the connection

	lowDisk atomic.Bool // it says so itself

	mu     sync.Mutex
	lastID uint64
	which  map[uint64]chan []fsm.Fence // questions for anchors, under way
}

func newPeer(n *Node, conn net.Conn) *peer {
	return &peer{
		node: n, conn: conn, out: newOutbox(conn),
		gone: make(chan struct{}), which: make(map[uint64]chan []fsm.Fence),
	}
}

func (ps *peers) add(p *peer) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed {
		return ErrClosed
	}
	if len(ps.all) >= maxPeers {
		return fmt.Errorf("%d nodes are connected already", maxPeers)
	}
	ps.all[p] = struct{}{}
	for _, key := range p.hello.Place.keys() {
		ps.placed[key] = append(ps.placed[key], p)
	}
	return nil
}

func (ps *peers) remove(p *peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.all, p)
	ps.losses++
	for _, key := range p.hello.Place.keys() {
		ps.placed[key] = slices.DeleteFunc(ps.placed[key], func(q *peer) bool { return q == p })
		if len(ps.placed[key]) == 0 {
			delete(ps.placed, key)
		}
	}
	if ps.by[p.inc] == p && ps.latest[p.hello.ID] == p.inc {
		delete(ps.latest, p.hello.ID)
	}
	ps.leave(p, p.inc)
}

// leave notes that an incarnation is not in touch by this connection any more.
func (ps *peers) leave(p *peer, inc fsm.Incarnation) {
	if p != nil && ps.by[inc] == p {
		delete(ps.by, inc)
		ps.turn()
	}
}

func (ps *peers) turn() {
	select {
	case ps.turned <- struct{}{}:
	default:
	}
}

// heard notes that an incarnation is in touch, by this connection.
func (ps *peers) heard(p *peer, inc fsm.Incarnation) {
	if inc == 0 {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.inc != inc {
		ps.leave(p, p.inc)
		p.inc = inc
		// A node that was started anew is not what it was, though the end of the
		// connection that it had then may show much later.
		if old := ps.latest[p.hello.ID]; old < inc {
			ps.latest[p.hello.ID] = inc
			ps.leave(ps.by[old], old)
		}
	}
	if ps.by[inc] == nil {
		ps.turn()
	}
	ps.by[inc] = p
	ps.contact[inc] = time.Now()
}

// lastHeard is when an incarnation was last in touch with this server; zero if never.
func (ps *peers) lastHeard(inc fsm.Incarnation) time.Time {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.contact[inc]
}

// forget drops what is known of incarnations that the table no longer has.
func (ps *peers) forget(alive map[fsm.Incarnation]bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for inc := range ps.contact {
		if !alive[inc] {
			delete(ps.contact, inc)
		}
	}
}

// push carries events to the nodes they concern: those whose clients asked, and
// the agents on whose hosts the processes are. (Servers learn of these by their logs.)
func (ps *peers) push(events []fsm.Event) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.by)+len(ps.placed) == 0 {
		return
	}
	frames := make(map[*peer][]byte)
	for _, e := range events {
		if e.OfOrder() {
			if _, waits := pendingOf(e.Order.State); e.Kind != fsm.EventOrderClosed {
				for _, part := range e.Order.Parts {
					if waits(part.State) {
						ps.sendOrder(e.Kind, e.Order, part)
					}
				}
			}
			continue
		}
		asked := ps.by[e.Ask.Node]
		if asked != nil && tells(e.Kind) {
			frames[asked] = fsm.AppendEvent(frames[asked], e)
		} else {
			asked = nil
		}
		if e.Autounlock && len(ps.placed) > 0 && e.Kind != fsm.EventAway && e.Kind != fsm.EventBack {
			for _, p := range ps.placed[placeKey(e.Process)] {
				if p != asked && p.hello.Agent && p.hello.Place.has(e.Process) {
					frames[p] = fsm.AppendEvent(frames[p], e)
				}
			}
		}
	}
	for p, b := range frames {
		p.out.send(frameEvents, b)
	}
}

// tells reports whether an event is for a client to know.
func tells(k fsm.EventKind) bool {
	switch k {
	case fsm.EventQueued, fsm.EventRenewed, fsm.EventAway, fsm.EventBack:
		return false
	}
	return true
}

// watch reports whether a node in touch watches a process.
func (ps *peers) watch(q fsm.Process) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.ContainsFunc(ps.placed[placeKey(q)], func(p *peer) bool { return p.hello.Place.has(q) })
}

// lost counts the connections of nodes that have ended.
func (ps *peers) lost() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.losses
}

// places lists what the nodes in touch watch.
func (ps *peers) places() []place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	list := make([]place, 0, len(ps.all))
	for p := range ps.all {
		list = append(list, p.hello.Place)
	}
	return list
}

// broadcast sends a frame to every peer.
func (ps *peers) broadcast(kind byte, payload []byte) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for p := range ps.all {
		p.out.send(kind, payload)
	}
}

// close ends every connection; their goroutines end by themselves.
func (ps *peers) close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.closed = true
	for p := range ps.all {
		_ = p.conn.Close()
	}
}

// acceptPeers serves the node side of the peer port until ln closes.
func (n *Node) acceptPeers(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		n.run(func() { n.servePeer(conn) })
	}
}

func (n *Node) servePeer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(n.ctx, func() { _ = conn.Close() })
	defer stop()
	r := bufio.NewReader(conn)
	p := newPeer(n, conn)
	defer close(p.gone)
	if err := p.meet(r); err != nil {
		n.log.Debug("peer turned away", "remote", conn.RemoteAddr(), "error", err)
		return
	}
	if err := n.peers.add(p); err != nil {
		n.log.Warn("peer turned away", "remote", conn.RemoteAddr(), "error", err)
		return
	}
	defer n.peers.remove(p)
	var writer sync.WaitGroup
	writer.Go(p.out.run)
	defer writer.Wait()
	defer p.out.close()
	p.out.send(frameLeader, mustJSON(n.leader()))

	var buf []byte
	for {
		if conn.SetReadDeadline(time.Now().Add(peerSilence)) != nil {
			return
		}
		kind, b, err := transport.ReadFrame(r, buf, maxPeerRequest)
		if err == nil {
			err = p.handle(kind, b)
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				n.log.Debug("peer gone", "peer", p.hello.Name, "error", err)
			}
			return
		}
		buf = b[:0]
		if cap(buf) > outboxKeep {
			buf = nil
		}
	}
}

// meet reads the hello and answers it.
func (p *peer) meet(r *bufio.Reader) error {
	if err := p.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	kind, b, err := transport.ReadFrame(r, nil, maxHello)
	if err != nil {
		return err
	}
	if kind != frameHello || json.Unmarshal(b, &p.hello) != nil {
		return errPeerGarbage
	}
	w := p.node.welcome()
	switch {
	case p.hello.Protocol != peerProtocol:
		w.Error = fmt.Sprintf("node %s speaks peer protocol %d, yours is %d: upgrade the older one", w.Name, peerProtocol, p.hello.Protocol)
	case p.hello.Cluster != "" && w.Cluster != "" && p.hello.Cluster != w.Cluster:
		w.Error = fmt.Sprintf("node %s belongs to cluster %s, yours to %s: correct --join, or give the node an empty --data-dir", w.Name, w.Cluster, p.hello.Cluster)
	case p.node.removed().out(p.hello.ID):
		w.Error, w.Removed = ErrRemoved.Error(), true
	}
	if _, err := p.conn.Write(transport.AppendFrame(nil, frameWelcome, mustJSON(w))); err != nil {
		return err
	}
	if w.Error != "" {
		return errors.New(w.Error)
	}
	return p.conn.SetDeadline(time.Time{})
}

func (p *peer) handle(kind byte, b []byte) error {
	switch kind {
	case framePing:
		inc, rest, err := uvarint(b)
		if err != nil {
			return err
		}
		p.lowDisk.Store(len(rest) > 0 && rest[0] == pingLowDisk)
		p.node.peers.heard(p, fsm.Incarnation(inc))
		p.out.send(framePong, nil)
	case framePropose:
		for len(b) > 0 {
			prop, rest, err := fsm.DecodeProposal(b)
			if err != nil {
				return fmt.Errorf("%w: %w", errPeerGarbage, err)
			}
			b = rest
			p.propose(prop)
		}
	case frameAsk:
		id, b, err := uvarint(b)
		if err != nil || len(b) == 0 {
			return errPeerGarbage
		}
		method, payload := b[0], append([]byte(nil), b[1:]...)
		// Questions may wait for the log; proposals behind them must not.
		p.node.run(func() { p.answer(id, method, payload) })
	case frameAnchors:
		return p.tells(b)
	}
	return nil
}

// propose hands a peer's command to this node's office, if it has one.
func (p *peer) propose(prop fsm.Proposal) {
	p.node.peers.heard(p, prop.Ask.Node)
	o := p.node.office.Load()
	if o == nil {
		p.out.send(frameBounced, nil)
		return
	}
	o.propose(prop, func(res fsm.Result, err error) {
		if err != nil {
			p.out.send(frameBounced, nil)
			return
		}
		p.out.send(frameResults, appendAnswer(nil, prop.Ask, res))
	})
}

// answer serves one question.
func (p *peer) answer(id uint64, method byte, payload []byte) {
	ctx, cancel := context.WithTimeout(p.node.ctx, p.node.cfg.NoLeaderGrace)
	defer cancel()
	b, err := p.node.answerPeer(ctx, method, payload)
	head := binary.AppendUvarint(nil, id)
	if err != nil {
		p.out.send(frameReply, append(append(head, replyError), err.Error()...))
		return
	}
	p.out.send(frameReply, append(append(head, replyOK), b...))
}

// answerPeer answers another node's question.
func (n *Node) answerPeer(ctx context.Context, method byte, payload []byte) ([]byte, error) {
	switch method {
	case askIndex:
		r, err := n.ownReadIndex(ctx)
		return binary.AppendUvarint(binary.AppendUvarint(nil, r.index), uint64(r.now)), err
	case askStatus:
		var q statusQuery
		if err := json.Unmarshal(payload, &q); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		res, err := n.Status(ctx, q.Owner, q.Locks)
		return fsm.AppendResult(nil, res), err
	case askTable:
		_, snap, err := n.capture(ctx, len(payload) == 1 && payload[0] == 1)
		if err != nil {
			return nil, err
		}
		var b []byte
		err = snap.Encode(func(chunk []byte) error { b = append(b, chunk...); return nil })
		return b, err
	case askLook:
		var list []standing
		if err := json.Unmarshal(payload, &list); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		err := n.look(ctx, list)
		return mustJSON(list), err
	case askEnded:
		var f fsm.Fence
		if err := json.Unmarshal(payload, &f); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		if n.replica == nil {
			return nil, fmt.Errorf("%s is an agent", n.cfg.Name)
		}
		cause, err := n.Ended(ctx, f)
		return mustJSON(cause), err
	case askVoters:
		return mustJSON(n.voterIDs(ctx)), nil
	case askCharges:
		var pl place
		if err := json.Unmarshal(payload, &pl); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		list, err := n.charges(ctx, pl)
		return mustJSON(list), err
	case askDead:
		var p fsm.Process
		if err := json.Unmarshal(payload, &p); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		return nil, n.Dead(ctx, p)
	case askAnchors:
		var fences []fsm.Fence
		if err := json.Unmarshal(payload, &fences); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		return mustJSON(n.liveness.anchored(fences)), nil
	case askHealth:
		return mustJSON(n.health()), nil
	case askRemove:
		var q removeQuery
		if err := json.Unmarshal(payload, &q); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		return mustJSON(n.expel(ctx, q)), nil
	case askMembers:
		list, err := n.Members(ctx)
		return mustJSON(list), err
	case askTransfer:
		var q transferQuery
		if err := json.Unmarshal(payload, &q); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		return mustJSON(n.handTo(ctx, q)), nil
	case askOrders:
		var list []word
		if err := json.Unmarshal(payload, &list); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		if n.office.Load() == nil {
			return nil, errOutOfOffice
		}
		err := n.standings(ctx, list)
		return mustJSON(list), err
	case askAbsent:
		if n.office.Load() == nil {
			return nil, errOutOfOffice
		}
		return mustJSON(n.absent()), nil
	case askOrderList:
		var all bool
		if err := json.Unmarshal(payload, &all); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		list, err := n.Orders(ctx, all)
		return mustJSON(list), err
	case askFollow:
		var q orderQuery
		if err := json.Unmarshal(payload, &q); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		if n.replica == nil {
			return nil, fmt.Errorf("%s is an agent", n.cfg.Name)
		}
		o, err := n.follow(ctx, q)
		return mustJSON(o), err
	case askInvite:
		var inv invitation
		if err := json.Unmarshal(payload, &inv); err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		return nil, n.invited(inv)
	}
	return nil, fmt.Errorf("node %s does not know question %q: upgrade it", n.cfg.Name, method)
}
