package cluster

import (
	"context"
	"fmt"
	"slices"
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

// membership is a leader's job of making the servers that are there Raft's: a new one
// is added without a vote, and gets one when it has stayed and has the log. Nobody is
// ever removed for being silent: that is for an operator to decide. What one has
// decided and an earlier leader has not completed is completed here.
type membership struct {
	node *Node

	since  map[raft.ServerID]time.Time // in touch, without a vote
	commit uint64                      // index that was committed a round ago: who has that has caught up
	said   map[string]string           // by id, what was logged last
}

func (n *Node) reconcileMembers(ctx context.Context, _ *office) {
	m := &membership{node: n, since: make(map[raft.ServerID]time.Time), said: make(map[string]string)}
	t := time.NewTicker(membersEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.complete(ctx)
		m.admit(ctx)
	}
}

// complete removes the servers that are still to be removed.
func (m *membership) complete(ctx context.Context) {
	for _, c := range m.node.removed() {
		if c.Out || ctx.Err() != nil {
			continue
		}
		reply := m.node.expel(ctx, removeQuery{Node: c.ID})
		if why := reply.Refused + reply.Failed; why != "" {
			m.say(c.ID, "a server is still to be removed", "name", c.Name, "reason", why)
		}
	}
}

// admit takes in those who have come, and gives those their votes who have stayed.
func (m *membership) admit(ctx context.Context) {
	n := m.node
	done, err := n.turn(ctx)
	if err != nil {
		return
	}
	defer done()
	servers, near, gone, own := n.voters(), n.nearby(), n.removed(), n.clusterID()
	lost := strays(servers, near)
	got := n.survey(ctx, slices.DeleteFunc(slices.Clone(servers), func(s raft.Server) bool { return s.Suffrage == raft.Voter }))
	caughtUp := m.commit
	m.commit = n.raft.CommitIndex()
	for _, g := range near {
		id, addr := raft.ServerID(g.ID), raft.ServerAddress(g.Addr)
		if _, removed := gone.get(g.ID); removed || ctx.Err() != nil {
			continue
		}
		var err error
		i := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == id })
		switch {
		case i < 0 && lost[g.ID] != "":
			m.say(g.ID, fmt.Sprintf("%s has come back without its data: lockctl remove %s, then it is taken in", g.Name, lost[g.ID]), "id", g.ID, "addr", addr)
		case i < 0 && (g.Cluster == "" || g.Cluster == own):
			n.log.Info("adding a server", "name", g.Name, "id", id, "addr", addr)
			err = n.raft.AddNonvoter(id, addr, 0, memberChangeTimeout).Error()
		case i < 0:
		case servers[i].Address != addr:
			n.log.Info("a server has moved", "name", g.Name, "from", servers[i].Address, "to", addr)
			if servers[i].Suffrage == raft.Voter {
				err = n.raft.AddVoter(id, addr, 0, memberChangeTimeout).Error()
			} else {
				err = n.raft.AddNonvoter(id, addr, 0, memberChangeTimeout).Error()
			}
		case servers[i].Suffrage != raft.Voter:
			h, there := got[id]
			if !there || m.since[id].IsZero() {
				m.since[id] = time.Now()
				break
			}
			if time.Since(m.since[id]) >= promoteAfter && caughtUp > 0 && h.Applied >= caughtUp {
				n.log.Info("giving a server its vote", "name", g.Name)
				err = n.raft.AddVoter(id, addr, 0, memberChangeTimeout).Error()
			}
		}
		if err != nil {
			m.say(g.ID, "membership not changed", "name", g.Name, "addr", addr, "error", err)
			return
		}
	}
}

// say logs something about a server, once.
func (m *membership) say(id, msg string, args ...any) {
	line := fmt.Sprint(append([]any{msg}, args...)...)
	if m.said[id] == line {
		return
	}
	m.said[id] = line
	m.node.log.Warn(msg, args...)
}

// strays are the servers that cannot be taken in because another server has their
// address, with the id of that one: as a rule it is what they were before they lost their data.
func strays(servers []raft.Server, near []gossiped) map[string]string {
	list := make(map[string]string)
	for _, g := range near {
		if slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == g.ID }) {
			continue
		}
		i := slices.IndexFunc(servers, func(s raft.Server) bool { return string(s.Address) == g.Addr })
		// One that has moved gives its address free.
		if i >= 0 && !slices.ContainsFunc(near, func(o gossiped) bool { return o.ID == string(servers[i].ID) && o.Addr != g.Addr }) {
			list[g.ID] = string(servers[i].ID)
		}
	}
	return list
}

// nearby lists the live servers of this cluster, and those of none yet.
func (n *Node) nearby() []gossiped {
	switch {
	case n.cfg.nearby != nil:
		return n.cfg.nearby()
	case n.gossip != nil:
		return n.gossip.servers()
	}
	return nil
}

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
