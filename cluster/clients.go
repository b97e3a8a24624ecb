package cluster

// openClients serves clients on the listeners of the configuration.
func (n *Node) openClients() {
	n.clients = startServer(nodeForSessions{n}, n.cfg.Clients, serverConfig{
		MaxClients: n.cfg.MaxClients,
		Idle:       n.cfg.ClientIdle,
		Reachable:  n.inReach,
		Logger:     n.log.Named("client"),
	})
}

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
