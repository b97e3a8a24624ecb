package cluster

import (
	"slices"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestSimulatedIdleNodeStays has nodes come to a leader that has been in office for
// long, and ask it for nothing: what they join as is to last.
func TestSimulatedIdleNodeStays(t *testing.T) {
	tests := []struct {
		name string
		come func(s *sim) *Node
	}{
		{"a new agent", func(s *sim) *Node {
			s.configure = simAgent
			return s.start("agent")
		}},
		{"given up while it was cut off", func(s *sim) *Node {
			n := s.follower()
			s.net.Isolate(n.addr)
			time.Sleep(15 * time.Second)
			s.net.Heal()
			return n
		}},
	}
	for _, tt := range tests {
		// A node names itself every second, and a leader looks every second who is to be
		// given up: which comes first is a matter of when the node came.
		for _, phase := range []time.Duration{0, 250, 500, 750} {
			t.Run(tt.name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newSim(t, 3)
					defer s.close()
					leader := s.leader()
					time.Sleep(20*time.Second + phase*time.Millisecond)
					n := tt.come(s)
					time.Sleep(5 * time.Second)
					inc, index := n.ledger.incarnation(), leader.replica.appliedIndex()
					for range 40 {
						time.Sleep(500 * time.Millisecond)
						if now := n.ledger.incarnation(); now != inc || !leader.knows(inc) {
							t.Fatalf("incarnation %d, then %d; the table knows it: %v", inc, now, leader.knows(inc))
						}
					}
					if now := leader.replica.appliedIndex(); now != index {
						t.Errorf("%d entries for nothing", now-index)
					}
				})
			})
		}
	}
}

// simAgent makes an agent of a node.
func simAgent(cfg *Config) {
	_ = cfg.PeerListener.Close()
	cfg.Agent, cfg.PeerListener, cfg.Stores = true, nil, nil
}

// knows reports whether this server's table has an incarnation.
func (n *Node) knows(inc fsm.Incarnation) (known bool) {
	n.replica.view(func(m *fsm.Machine) {
		known = slices.ContainsFunc(m.Nodes(), func(node fsm.Node) bool { return node.Incarnation == inc })
	})
	return known
}

// TestAnAgentHearsOfTheLatestLeader tells an agent of two leaders by two of its links, as
// after an election. What the one has heard must not undo what the other has set since.
func TestAnAgentHearsOfTheLatestLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0)
		defer s.close()
		s.configure = simAgent
		s.peers = []Server{{ID: "n1", Addr: "n1:1"}, {ID: "n2", Addr: "n2:1"}}
		n := s.start("agent")
		n.heardLeader(peerLeader{ID: "n2", Term: 7})
		n.setLeader(peerLeader{ID: "n1", Term: 6})
		n.heardLeader(peerLeader{ID: "n1", Term: 6})
		if got := n.leader(); got.ID != "n2" {
			t.Errorf("told of the leaders of the terms 6 and 7, and takes %+v", got)
		}
		n.heardLeader(peerLeader{ID: "n1", Term: 8})
		if got := n.leader(); got.ID != "n1" {
			t.Errorf("told of the leader of term 8, and takes %+v", got)
		}
	})
}
