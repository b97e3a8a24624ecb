package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// ownOffice is the route of a node that leads.
type ownOffice struct {
	ledger *ledger
	office *office
}

// propose implements route.
func (r *ownOffice) propose(p fsm.Proposal) {
	r.office.propose(p, func(res fsm.Result, err error) {
		if err != nil {
			r.ledger.bounce(r)
			return
		}
		r.ledger.answer(p.Ask, res)
	})
}

// leader is the leader as this node knows it.
func (n *Node) leader() peerLeader {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lead
}

// leaderChanged is closed when another leader is known, or the way to it opens or closes.
func (n *Node) leaderChanged() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// setLeader notes a new leader and directs commands there. What an agent is told of an
// earlier term is not news: it hears of leaders by all its links at once.
func (n *Node) setLeader(p peerLeader) {
	n.mu.Lock()
	if n.lead == p || n.cfg.Agent && p.Term < n.lead.Term {
		n.mu.Unlock()
		return
	}
	n.lead = p
	n.mu.Unlock()
	n.log.Info("leader", "id", p.ID, "addr", p.Addr, "term", p.Term)
	n.reroute()
	n.peers.broadcast(frameLeader, mustJSON(p))
	n.missed()
}

// missed is called when grants may have been pushed to nobody. A server has its
// own log to hear of them. An agent does not: not of what was pushed to a link that
// is no more, nor of what a new leader has applied before it took office.
func (n *Node) missed() {
	if n.replica == nil {
		n.run(n.resync)
		n.run(n.recharge)
	}
}

// heardLeader takes a server's word on who leads. Only agents need it; that of a
// server that has lost its leader is not news.
func (n *Node) heardLeader(p peerLeader) {
	if n.cfg.Agent && p.ID != "" {
		n.setLeader(p)
	}
}

// reroute sends commands where they must go now: to this node's office, or over
// the link to the leader's node, or nowhere until there is a way.
func (n *Node) reroute() {
	n.mu.Lock()
	defer n.mu.Unlock()
	var r route
	o := n.office.Load()
	l := n.links[n.lead.ID]
	own, isOwn := n.routed.(*ownOffice)
	switch {
	case o != nil && isOwn && own.office == o:
		r = own
	case o != nil:
		r = &ownOffice{ledger: n.ledger, office: o}
	case n.lead.ID != n.id && l != nil && l.up():
		r = l.link
	}
	if r == n.routed {
		return
	}
	n.routed = r
	close(n.changed)
	n.changed = make(chan struct{})
	n.ledger.setRoute(r)
}

// leaderLink is the link to the leader's node; nil if this node leads or there is none.
func (n *Node) leaderLink() *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.links[n.lead.ID]; l != nil && l.up() {
		return l.link
	}
	return nil
}

// linkUp is told by a link that it has connected.
func (n *Node) linkUp(l *link, w peerWelcome) {
	n.heardLeader(w.Leader)
	n.reroute()
	n.missed()
}

func (n *Node) linkDown(*link) { n.reroute() }

// awaitLeader waits until there may be a better answer than err.
func (n *Node) awaitLeader(ctx context.Context, changed <-chan struct{}, err error) error {
	if n.ledger.leaderless() > n.cfg.NoLeaderGrace {
		return n.noLeader()
	}
	t := time.NewTimer(rebound)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-n.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return nil
}

// noLeader says that there is no leader, and what is missing for one.
func (n *Node) noLeader() error {
	up, all := n.reachable()
	return fmt.Errorf("%w: %d of %d servers reachable", ErrNoLeader, up, all)
}

// reachable counts the servers in touch with this node, itself included if it is one.
func (n *Node) reachable() (up, all int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.cfg.Agent {
		up, all = 1, 1
	}
	for _, l := range n.links {
		all++
		if l.up() {
			up++
		}
	}
	return up, all
}

// inReach reports whether new clients should be taken.
func (n *Node) inReach() bool { return n.ledger.leaderless() < outOfReach }

// recoverClaims resyncs whenever an incarnation is lost.
func (n *Node) recoverClaims() {
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.ledger.lost:
			n.resync()
		}
	}
}

// resync compares what this node's clients wait for and hold with the table, after
// events have been missed.
func (n *Node) resync() {
	for n.ctx.Err() == nil {
		list := n.ledger.parked()
		if len(list) == 0 {
			return
		}
		err := n.look(n.ctx, list)
		if err == nil {
			n.ledger.reconcile(list)
			return
		}
		n.log.Debug("clients not yet compared with the table", "error", err)
		pause(n.ctx, pingInterval)
	}
}

// recharge compares what this host's processes hold and wait for with the table,
// after events have been missed.
func (n *Node) recharge() {
	if n.cfg.Processes == nil {
		return
	}
	for n.ctx.Err() == nil {
		fences, tickets := n.liveness.known()
		list, err := n.charges(n.ctx, n.liveness.place)
		if err == nil {
			n.liveness.adopt(list, fences, tickets)
			return
		}
		n.log.Debug("processes not yet compared with the table", "error", err)
		pause(n.ctx, pingInterval)
	}
}

// charges asks the table what ends with a process of a place.
func (n *Node) charges(ctx context.Context, p place) ([]charge, error) {
	if n.replica == nil {
		b, err := n.askServer(ctx, askCharges, mustJSON(p))
		if err != nil {
			return nil, err
		}
		var list []charge
		err = json.Unmarshal(b, &list)
		return list, err
	}
	t, err := n.Table(ctx, false)
	return charges(p, t.Holds, t.Waits), err
}

// keepLinks keeps a link to every server of the cluster but this node.
func (n *Node) keepLinks() {
	t := time.NewTicker(pingInterval)
	defer t.Stop()
	for {
		n.syncLinks()
		n.learnCluster()
		n.tellRemoved()
		select {
		case <-n.ctx.Done():
			return
		case <-n.serversChanged():
		case <-t.C:
		}
	}
}

func (n *Node) syncLinks() {
	servers := n.servers()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return
	}
	for id, addr := range servers {
		if id == n.id {
			continue
		}
		if l := n.links[id]; l != nil {
			l.setAddr(addr)
			continue
		}
		ctx, cancel := context.WithCancel(n.ctx)
		l := &linkRun{link: newLink(n, id, addr), stop: cancel}
		n.links[id] = l
		n.wg.Add(1)
		go func() {
			defer n.wg.Done()
			l.run(ctx)
		}()
	}
	for id, l := range n.links {
		if _, ok := servers[id]; !ok {
			l.stop()
			delete(n.links, id)
		}
	}
}

// learnCluster notes which cluster this node has become part of: an agent by
// being let in, a server once Raft has given it a log.
func (n *Node) learnCluster() {
	if n.identity == nil || n.clusterID() != "" || (n.raft != nil && n.raft.LastIndex() == 0) {
		return
	}
	n.mu.Lock()
	cluster := ""
	for _, l := range n.links {
		if c := l.cluster(); c != "" {
			cluster = c
		}
	}
	n.mu.Unlock()
	if cluster == "" {
		return
	}
	if err := n.adopt(cluster); err != nil {
		n.log.Error("cluster not noted", "error", err)
		return
	}
	if n.gossip != nil {
		n.gossip.announce()
	}
}

// servers are the peer addresses of all servers by id: what gossip says of them
// goes before what Raft's configuration does, since it is fresher.
func (n *Node) servers() map[string]string {
	m := make(map[string]string)
	for _, s := range n.cfg.Servers {
		m[s.ID] = s.Addr
	}
	for _, s := range n.voters() {
		m[string(s.ID)] = string(s.Address)
	}
	for _, s := range n.nearby() {
		m[s.ID] = s.Addr
	}
	for _, c := range n.removed() {
		if c.Out {
			delete(m, c.ID)
		}
	}
	return m
}

func (n *Node) serversChanged() <-chan struct{} {
	if n.gossip == nil {
		return nil
	}
	return n.gossip.changed
}

// voters are the servers of Raft's latest configuration.
func (n *Node) voters() []raft.Server {
	if n.raft == nil {
		return nil
	}
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}
