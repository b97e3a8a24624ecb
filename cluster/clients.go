package cluster

import "context"

type clients struct{}

func (*clients) move(context.Context, []string) {}
func (*clients) close()                         {}

func (n *Node) openClients() error { return nil }

// clientAddr is where clients reach this node, for clients that are moved there.
func (n *Node) clientAddr() string {
	for _, ln := range n.cfg.Clients {
		if a := ln.Addr(); a.Network() == "tcp" {
			return advertised(a.String(), n.cfg.Advertise)
		}
	}
	return ""
}

// otherNodes are the client addresses of the other live nodes.
func (n *Node) otherNodes() []string {
	if n.gossip == nil {
		return nil
	}
	var list []string
	for _, m := range n.gossip.all() {
		if m.ID != n.id && m.Client != "" {
			list = append(list, m.Client)
		}
	}
	return list
}
