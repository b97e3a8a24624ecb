package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

const foundEvery = 250 * time.Millisecond

// found makes a new cluster of Config.BootstrapExpect servers, once they have
// found each other.
//
// One of them, the one with the smallest id, invites the others; each accepts one
// invitation in its life and remembers it on disk. Only when all have accepted
// does the inviter write the first configuration, alone; the others get it from
// Raft. So two founders whose views of the gossip differ cannot both succeed:
// whichever server is in both views has accepted one of them.
func (n *Node) found() {
	if n.cfg.BootstrapExpect < 2 {
		return
	}
	t := time.NewTicker(foundEvery)
	defer t.Stop()
	var said string
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		if n.raft.LastIndex() > 0 {
			return
		}
		err := n.tryFound(n.gossip.servers())
		if err != nil && err.Error() != said {
			said = err.Error()
			n.log.Info("cluster not founded yet", "reason", said)
		}
	}
}

func (n *Node) tryFound(servers []gossiped) error {
	own := n.clusterID()
	var first raft.Configuration
	smallest := n.id
	for _, s := range servers {
		if s.Cluster != "" && s.Cluster != own {
			return fmt.Errorf("%s belongs to a cluster: waiting for its leader to add this node", s.Name)
		}
		if s.Expect != n.cfg.BootstrapExpect {
			return fmt.Errorf("%s expects %d servers, this node %d: give all the same --bootstrap-expect", s.Name, s.Expect, n.cfg.BootstrapExpect)
		}
		smallest = min(smallest, s.ID)
		first.Servers = append(first.Servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Addr)})
	}
	switch {
	case len(servers) != n.cfg.BootstrapExpect:
		return fmt.Errorf("%d of the %d servers expected have been found", len(servers), n.cfg.BootstrapExpect)
	case smallest != n.id:
		return fmt.Errorf("all %d servers found: waiting to be invited", len(servers))
	}
	cluster := own
	if cluster == "" {
		// Written down before anyone is invited, so that a founder which dies now
		// invites to the same cluster when it is back.
		cluster = newID()
		if err := n.adopt(cluster); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	for _, s := range servers {
		if s.ID == n.id {
			continue
		}
		n.mu.Lock()
		l := n.links[s.ID]
		n.mu.Unlock()
		if l == nil {
			return fmt.Errorf("%s is not connected yet", s.Name)
		}
		if _, err := l.ask(ctx, askInvite, mustJSON(invitation{Cluster: cluster, Expect: n.cfg.BootstrapExpect})); err != nil {
			return fmt.Errorf("invite %s: %w", s.Name, err)
		}
	}
	if err := n.raft.BootstrapCluster(first).Error(); err != nil {
		return fmt.Errorf("write the first configuration: %w", err)
	}
	n.log.Info("cluster founded", "cluster", cluster, "servers", len(servers))
	n.gossip.announce()
	n.campaign()
	return nil
}

// invited accepts or declines to be of a new cluster.
func (n *Node) invited(inv invitation) error {
	if n.raft == nil {
		return fmt.Errorf("%s is an agent", n.cfg.Name)
	}
	if inv.Cluster == "" {
		return errPeerGarbage
	}
	if inv.Expect != n.cfg.BootstrapExpect {
		return fmt.Errorf("%s expects %d servers, not %d", n.cfg.Name, n.cfg.BootstrapExpect, inv.Expect)
	}
	if err := n.adopt(inv.Cluster); err != nil {
		return err
	}
	if n.gossip != nil {
		n.run(n.gossip.announce)
	}
	return nil
}
