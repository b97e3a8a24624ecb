package cluster

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockerd/lockerd/fsm"
)

// TestOrderOfAllNeedsAll asks for all nodes while one is away, and while a server is
// given up: the table has forgotten that one, and Raft has not.
func TestOrderOfAllNeedsAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		down, leader, agent := s.follower(), s.leader(), s.nodes["agent1"]
		refused := func() {
			t.Helper()
			for _, n := range []*Node{leader, agent} {
				_, err := n.OpenOrder(t.Context(), freezeAll(), "root@test")
				var no Refusal
				if !errors.As(err, &no) || !strings.Contains(err.Error(), down.Name()) || !strings.Contains(err.Error(), "out of touch") {
					t.Errorf("%v", err)
				}
			}
		}
		s.kill(down)
		s.until("it to be away", func() bool { return len(leader.tableNodes()) == 3 })
		refused()
		s.until("it to be given up", func() (gone bool) {
			leader.replica.view(func(m *fsm.Machine) { gone = len(m.Nodes()) == 3 })
			return gone
		})
		refused()
		s.start(down.Name())
		s.joined()
		id := s.open(agent, freezeAll())
		if o := s.reach(agent, id, fsm.OrderFrozen); len(o.Nodes) != 4 {
			t.Errorf("%+v", o)
		}
		if _, err := leader.Thaw(t.Context(), ThawRequest{All: true}, "ann"); err != nil {
			t.Fatal(err)
		}
	})
}
