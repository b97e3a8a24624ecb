package cluster

import (
	"cmp"
	"context"
	"encoding/json"

	"github.com/lockerd/lockerd/fsm"
)

// absentServers asks the leader, which may be this node, which servers are out of touch.
func (n *Node) absentServers(ctx context.Context) ([]string, error) {
	for {
		changed := n.leaderChanged()
		if n.office.Load() != nil {
			return n.absent(), nil
		}
		var cause error = ErrNoLeader
		if l := n.leaderLink(); l != nil {
			b, err := l.ask(ctx, askAbsent, nil)
			if err == nil {
				var names []string
				if json.Unmarshal(b, &names) != nil {
					return nil, errPeerGarbage
				}
				return names, nil
			}
			cause = err
		}
		if err := n.awaitLeader(ctx, changed, cause); err != nil {
			return nil, err
		}
	}
}

// absent names the servers of Raft's configuration, as the leader, that are not in touch
// by the table. That knows nothing of one that was given up, or has never come.
func (n *Node) absent() (list []string) {
	here := make(map[string]bool)
	n.replica.view(func(m *fsm.Machine) {
		for _, node := range m.Nodes() {
			here[node.Name] = !node.Away // the latest of a name comes last
		}
	})
	names := n.names()
	n.mu.Lock()
	for id, l := range n.links {
		names[id] = cmp.Or(names[id], l.called())
	}
	n.mu.Unlock()
	for _, s := range n.voters() {
		if name := cmp.Or(names[string(s.ID)], string(s.ID)); !here[name] {
			list = append(list, name)
		}
	}
	return list
}
