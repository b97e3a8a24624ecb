package cluster

import (
	"context"
	"errors"
	"testing"

	"github.com/lockerd/lockerd/fsm"
)

// ending is thawed when it is told to, or turns out to have been before.
type ending struct {
	cause string
	stuck int // how often it fails first
	done  chan struct{}
}

func (e *ending) Freeze(context.Context) (string, error) { return "", nil }
func (e *ending) Renew()                                 {}
func (e *ending) Done() <-chan struct{}                  { return e.done }
func (e *ending) Err() error                             { return errors.New("because") }
func (e *ending) Cause() string                          { return e.cause }

func (e *ending) Thaw() error {
	if e.stuck > 0 {
		e.stuck--
		return errors.New("it is stuck")
	}
	close(e.done)
	return nil
}

// TestDutyEnds has a node told to thaw what has, or has not, been thawed just before.
func TestDutyEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 1, 0)
		defer s.close()
		n := s.leader()
		for _, c := range []struct {
			end  ending
			want fsm.ThawCause
			text string
		}{
			{ending{cause: "asked"}, fsm.ThawAsked, ""},
			{ending{cause: "deadline"}, fsm.ThawDeadline, "because"},
			{ending{cause: "quorum"}, fsm.ThawQuorum, "because"},
			{ending{cause: "guard"}, fsm.ThawGuard, "because"},
			{ending{cause: "guard", stuck: 2}, fsm.ThawAsked, ""}, // it was frozen until then
		} {
			d := newDuty(n.orders, &fsm.Order{ID: 99}, n.ledger.incarnation())
			n.orders.mu.Lock()
			d.end(fsm.ThawAsked)
			n.orders.mu.Unlock()
			c.end.done = make(chan struct{})
			d.thaw(&c.end)
			if r := d.next; r.State != fsm.PartThawed || r.Cause != c.want || r.Text != c.text {
				t.Errorf("%s: reported %+v, want %v, %q", c.end.cause, r, c.want, c.text)
			}
		}
	})
}
