package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// askers is when each node of an open order has last asked this leader about it, or has
// first been told of it by this leader.
//
// That a node is connected does not say that it is in touch: the way here may be good,
// and the way back lost, so that it knows no leader. It has thawed then, and cannot say
// so. But it has stopped asking. A node whose last question was answered a grace ago has
// thawed, so one that has been silent for two is no false alarm.
type askers struct {
	mu sync.Mutex
	at map[asker]time.Time
}

type asker struct {
	order fsm.OrderID
	node  fsm.Incarnation
}

// asked notes the questions of a node that are about to be answered.
func (a *askers) asked(list []word) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range list {
		// Only what silent has seen: what others make up takes no memory.
		if k := (asker{w.Order, w.Node}); !a.at[k].IsZero() {
			a.at[k] = time.Now()
		}
	}
}

// silent returns the ends of the orders of which a node has not asked for a span, and
// forgets those that are over.
func (a *askers) silent(open []*fsm.Order, span time.Duration) (ends []fsm.OrderEnd) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := make(map[asker]time.Time)
	for _, o := range open {
		if o.IsOver() {
			continue
		}
		who := ""
		for _, p := range o.Parts {
			k := asker{o.ID, p.Node}
			last, met := a.at[k]
			if !met {
				last = time.Now()
			}
			at[k] = last
			if who == "" && time.Since(last) > span {
				who = p.Name
			}
		}
		if who != "" {
			ends = append(ends, fsm.OrderEnd{Order: o.ID, By: who, Reason: fsm.OrderNodeAway})
		}
	}
	a.at = at
	return ends
}

// endSilent ends the orders that need a node which asks no more, as the leader.
func (n *Node) endSilent(ctx context.Context, o *office) {
	var open []*fsm.Order
	n.replica.view(func(m *fsm.Machine) { open, _ = m.Orders() })
	for _, c := range o.askers.silent(open, 2*n.cfg.OrderGrace) {
		n.log.Warn("a node of an order asks no more about it: the order ends", "order", c.Order, "node", c.By)
		if _, err := o.do(ctx, c); err != nil {
			return // the office ends
		}
	}
}
