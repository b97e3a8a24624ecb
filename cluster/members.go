package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	membersEvery = time.Second

	// promoteAfter is how long a new server must have been in touch without a vote
	// before it gets one: a server that comes and goes would only make quorums harder.
	promoteAfter = 5 * time.Second

	memberChangeTimeout = 10 * time.Second
)

// reconcileMembers is the leader's job of making gossip's servers Raft's: a new
// one is added without a vote, and gets one when it has stayed. Nobody is ever
// removed for being silent: that is for an operator to decide.
func (n *Node) reconcileMembers(ctx context.Context, _ *office) {
	if n.gossip == nil {
		return
	}
	since := make(map[raft.ServerID]time.Time)
	t := time.NewTicker(membersEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		has := make(map[raft.ServerID]raft.Server)
		for _, s := range n.voters() {
			has[s.ID] = s
		}
		own := n.clusterID()
		for _, m := range n.gossip.servers() {
			id, addr := raft.ServerID(m.ID), raft.ServerAddress(m.Addr)
			s, known := has[id]
			var err error
			switch {
			case !known && (m.Cluster == "" || m.Cluster == own):
				n.log.Info("adding a server", "name", m.Name, "addr", addr)
				err = n.raft.AddNonvoter(id, addr, 0, memberChangeTimeout).Error()
				since[id] = time.Now()
			case known && s.Address != addr:
				n.log.Info("a server has moved", "name", m.Name, "from", s.Address, "to", addr)
				if s.Suffrage == raft.Voter {
					err = n.raft.AddVoter(id, addr, 0, memberChangeTimeout).Error()
				} else {
					err = n.raft.AddNonvoter(id, addr, 0, memberChangeTimeout).Error()
				}
			case known && s.Suffrage != raft.Voter:
				if since[id].IsZero() {
					since[id] = time.Now()
				}
				if time.Since(since[id]) >= promoteAfter && n.peers.connected(m.ID) {
					n.log.Info("giving a server its vote", "name", m.Name)
					err = n.raft.AddVoter(id, addr, 0, memberChangeTimeout).Error()
				}
			}
			if err != nil {
				n.log.Warn("membership not changed", "name", m.Name, "error", err)
				break
			}
		}
	}
}

// connected reports whether a node has a connection to this server.
func (ps *peers) connected(id string) bool { return ps.find(id) != nil }

// find is the connection that a node has to this server, nil if it has none.
func (ps *peers) find(id string) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for p := range ps.all {
		if p.hello.ID == id {
			return p
		}
	}
	return nil
}
