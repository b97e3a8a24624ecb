package cluster

import (
	"context"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// callRoll tells the table, before this term's first command, which nodes this leader
// is in touch with; the others' places are passed over until it is. What an earlier
// leader said of them is of the past. It returns the last incarnation so far.
//
// The entry's time is the table's, so that nothing expires in it, and is granted on,
// before the roll is called.
func (n *Node) callRoll(base fsm.Millis) fsm.Incarnation {
	for _, c := range n.roll(math.MaxUint64, n.ordered()) {
		n.raft.Apply(fsm.AppendEntry(nil, fsm.Entry{Now: base, Proposals: []fsm.Proposal{{Command: c}}}), 0)
	}
	var last fsm.Incarnation
	n.replica.view(func(m *fsm.Machine) {
		for _, node := range m.Nodes() {
			last = node.Incarnation
		}
	})
	return last
}

// attend is the leader's job of keeping that up: a connection that ends takes its node's
// places out of line, in the log behind whatever has come by it, and the next one puts
// them back. The nodes of many are told of in one entry. Whoever comes is told what
// orders there are for it. While none comes or goes,
// nothing is written; the ticker is for what has crossed on its way.
//
// To be called away ends a node's orders, on all other nodes too. So one that has not
// come by yet when the office is taken is waited for as long as it would stay frozen by
// itself, if it has a part in an order: later it is of no use to that any more.
func (n *Node) attend(ctx context.Context, o *office, before fsm.Incarnation) {
	t := time.NewTicker(reapEvery)
	defer t.Stop()
	patience := time.NewTimer(n.cfg.OrderGrace)
	defer patience.Stop()
	awaited := n.ordered()
	for {
		n.remind()
		n.endSilent(ctx, o)
		select {
		case <-ctx.Done():
			return
		case <-n.peers.turned:
		case <-t.C:
		case <-patience.C:
			awaited = nil
		}
		for _, c := range n.roll(before, awaited) {
			if _, err := o.do(ctx, c); err != nil {
				break // the office ends
			}
		}
		n.tellGivenUp()
	}
}

// tellGivenUp tells the nodes in touch whose incarnations the table knows no more: they
// came back just as they were given up. Incarnations come from the table, and this
// leader has applied what gave them, so one that is missing is over.
func (n *Node) tellGivenUp() {
	n.peers.mu.Lock()
	by := maps.Clone(n.peers.by) // before the table is looked at: who joins in between is in it
	n.peers.mu.Unlock()
	own := n.ledger.incarnation()
	known := make(map[fsm.Incarnation]bool)
	n.replica.view(func(m *fsm.Machine) {
		for _, node := range m.Nodes() {
			known[node.Incarnation] = true
		}
	})
	if !known[own] {
		n.ledger.givenUp(own)
	}
	for inc, p := range by {
		if !known[inc] {
			p.out.send(frameGivenUp, binary.AppendUvarint(nil, uint64(inc)))
		}
	}
}

// roll returns what brings the table's word on who is away into line with who is in
// touch. An incarnation that has just joined may not have named itself to us yet, and
// has no places before it does; so one that is newer than before is out of touch only
// when it has been in touch. One that is awaited is not called away unless its process
// is known to have ended.
func (n *Node) roll(before fsm.Incarnation, awaited map[fsm.Incarnation]bool) []fsm.Command {
	var nodes []fsm.Node
	n.replica.view(func(m *fsm.Machine) { nodes = m.Nodes() })
	own := n.ledger.incarnation()
	var dead map[string]bool
	if len(awaited) > 0 {
		dead = n.deadServers()
	}
	var away, back []fsm.Incarnation
	n.peers.mu.Lock()
	for _, node := range nodes {
		inc := node.Incarnation
		_, met := n.peers.contact[inc]
		switch here := inc == own || n.peers.by[inc] != nil; {
		case node.Away && here:
			back = append(back, inc)
		case here:
			delete(awaited, inc) // from now on it is like all others
		case awaited[inc] && !dead[node.Name]:
		case !node.Away && (met || inc <= before):
			away = append(away, inc)
		}
	}
	n.peers.mu.Unlock()
	// Those who are back come first, or others would pass them at the last moment.
	var list []fsm.Command
	for part := range slices.Chunk(back, fsm.MaxNamed) {
		list = append(list, fsm.NodesBack{Nodes: part})
	}
	for part := range slices.Chunk(away, fsm.MaxNamed) {
		list = append(list, fsm.NodesAway{Nodes: part})
	}
	return list
}

// ordered lists the nodes that the open orders need.
func (n *Node) ordered() map[fsm.Incarnation]bool {
	var open []*fsm.Order
	n.replica.view(func(m *fsm.Machine) { open, _ = m.Orders() })
	need := make(map[fsm.Incarnation]bool)
	for _, o := range open {
		if o.IsOver() {
			continue
		}
		for _, p := range o.Parts {
			need[p.Node] = true
		}
		if o.Requester != 0 {
			need[o.Requester] = true
		}
	}
	return need
}

// deadServers names the servers where nobody has answered since their process ended.
func (n *Node) deadServers() map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	dead := make(map[string]bool)
	for _, l := range n.links {
		if name := l.dead(); name != "" {
			dead[name] = true
		}
	}
	return dead
}
