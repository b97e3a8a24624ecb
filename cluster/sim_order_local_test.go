package cluster

import (
	"testing"

	"github.com/lockerd/lockerd/fsm"
)

// TestOrderThawedByItself has one node's freeze end by itself, for each cause that an
// executor has.
func TestOrderThawedByItself(t *testing.T) {
	for _, tc := range []struct {
		cause  string
		reason fsm.OrderReason
		text   string
		want   fsm.ThawCause
	}{
		{"local", fsm.OrderFailed, "node agent1: it was thawed on the host itself", fsm.ThawLocal},
		{"guard", fsm.OrderFailed, "node agent1: what guards the freeze was lost", fsm.ThawGuard},
		{"failed", fsm.OrderFailed, "node agent1: what guards the freeze was lost", fsm.ThawGuard},
		{"deadline", fsm.OrderDeadline, "node agent1", fsm.ThawDeadline},
	} {
		t.Run(tc.cause, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newOrderSim(t, 3, 1)
				defer s.close()
				n, x := s.nodes["n1"], s.execs["agent1"]
				cause := func(o OrderInfo) (cause string) {
					for _, p := range o.Nodes {
						if p.Node == "agent1" {
							cause = p.Cause
						}
					}
					return cause
				}
				id := s.open(n, freezeAll())
				s.reach(n, id, fsm.OrderFrozen)
				x.mu.Lock()
				f := x.spans[0]
				x.mu.Unlock()
				f.undo(tc.cause)
				if o := s.closed(n, id, tc.reason, tc.text); cause(o) != tc.want.String() {
					t.Errorf("%+v", o)
				}
			})
		})
	}
}
