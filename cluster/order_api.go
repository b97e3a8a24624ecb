package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// orderTimeout is how long an order lasts that does not say.
	orderTimeout = fsm.Millis(60_000)

	// followFor is how long a server keeps another node's question for the next state
	// of an order.
	followFor = 5 * time.Second
)

// OpenOrder asks nodes to do something, all or none, and returns the order as it was
// opened. A [Refusal] says why it will not be done. After any other error it is not
// known whether there is an order; if it comes to be, it is ended at once.
func (n *Node) OpenOrder(ctx context.Context, req OrderRequest, by string) (uint64, error) {
	c, err := req.command(by)
	if err != nil {
		return 0, err
	}
	if req.All {
		// The table does not know of servers that were given up, or never came.
		absent, err := n.absentServers(ctx)
		if err != nil {
			return 0, err
		}
		if len(absent) > 0 {
			return 0, Refusal(fmt.Sprintf("node %s is out of touch", strings.Join(absent, ", ")))
		}
	}
	type outcome struct {
		res fsm.Result
		err error
	}
	answered := make(chan outcome)
	left := make(chan struct{})
	defer close(left)
	n.run(func() {
		for n.ctx.Err() == nil {
			res, err := n.Submit(n.ctx, c)
			select {
			case answered <- outcome{res, err}:
				if err == nil {
					return
				}
				<-left // it may be opened yet
			case <-left:
				if err == nil && res.Order != 0 {
					n.AbandonOrder(uint64(res.Order))
				}
				if err == nil {
					return
				}
			}
			pause(n.ctx, reportAgain)
		}
	})
	select {
	case o := <-answered:
		switch {
		case o.err != nil:
			return 0, o.err
		case o.res.Code == fsm.Refused:
			return 0, Refusal(o.res.Reason)
		case o.res.Order == 0:
			return 0, fmt.Errorf("unexpected answer of the table: %v", o.res.Code)
		}
		return uint64(o.res.Order), nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-n.ctx.Done():
		return 0, ErrClosed
	}
}

// command makes the table's command of a request.
func (r OrderRequest) command(by string) (fsm.OrderOpen, error) {
	c := fsm.OrderOpen{
		By: by, Action: r.Action, Spec: r.Spec, Nodes: r.Nodes, AllNodes: r.All,
		Within: fsm.Millis(r.WithinMS), Attached: r.Attached, Fence: fsm.Fence(r.Fence), ReleaseLock: r.ReleaseLock,
	}
	rand.Read(c.Nonce[:])
	switch {
	case r.TimeoutMS == 0:
		c.Timeout = orderTimeout
	case r.TimeoutMS > 0:
		c.Timeout = fsm.Millis(r.TimeoutMS)
	}
	if err := fsm.Validate(c); err != nil {
		return c, Refusal(err.Error())
	}
	return c, nil
}

// AbandonOrder ends an order because who has asked for it has gone. It returns at
// once; as long as this node runs, it sees to it.
func (n *Node) AbandonOrder(id uint64) {
	n.run(func() {
		for n.ctx.Err() == nil {
			if _, err := n.Submit(n.ctx, fsm.OrderEnd{Order: fsm.OrderID(id), Reason: fsm.OrderRequester}); err == nil {
				return
			}
			pause(n.ctx, reportAgain)
		}
	})
}

// FollowOrder returns an order as soon as its state has risen above the one called
// after; with "", as it is.
func (n *Node) FollowOrder(ctx context.Context, id uint64, after string) (OrderInfo, error) {
	for {
		o, err := n.follow(ctx, orderQuery{ID: id, After: after})
		if err != nil || o != nil {
			if err == nil && o.ID == 0 {
				err = Refusal(fmt.Sprintf("order %d is closed, and too long ago to be remembered", id))
			}
			if err != nil {
				return OrderInfo{}, err
			}
			return *o, nil
		}
		if ctx.Err() != nil {
			return OrderInfo{}, context.Cause(ctx)
		}
	}
}

// orderQuery asks for an order that is further than After.
type orderQuery struct {
	ID    uint64 `json:"id"`
	After string `json:"after,omitempty"`
}

// follow waits for such an order until ctx ends, or for followFor at most; then it is
// nil. One without id is forgotten.
func (n *Node) follow(ctx context.Context, q orderQuery) (*OrderInfo, error) {
	if n.replica == nil {
		b, err := n.askServer(ctx, askFollow, mustJSON(q))
		if err != nil {
			return nil, err
		}
		var o *OrderInfo
		if json.Unmarshal(b, &o) != nil {
			return nil, errPeerGarbage
		}
		return o, nil
	}
	t := time.NewTimer(followFor)
	defer t.Stop()
	for {
		heard := n.orders.heard()
		var o *fsm.Order
		var away map[fsm.Incarnation]bool
		var now fsm.Millis
		forgotten := false
		n.replica.view(func(m *fsm.Machine) {
			o, away, now = m.Order(fsm.OrderID(q.ID)), nodesAway(m), m.Now()
			forgotten = o == nil && uint64(m.Counts().Order) >= q.ID
		})
		switch {
		case forgotten:
			return &OrderInfo{}, nil
		case o != nil && (q.After == "" || o.State > stateOf(q.After)):
			info := orderInfo(o, away, now)
			return &info, nil
		}
		select {
		case <-heard:
		case <-t.C:
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		case <-n.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// Orders returns the open orders, with all those that are remembered, by id.
func (n *Node) Orders(ctx context.Context, all bool) ([]OrderInfo, error) {
	list := []OrderInfo{}
	if n.replica == nil {
		b, err := n.askServer(ctx, askOrderList, mustJSON(all))
		if err != nil {
			return nil, err
		}
		if json.Unmarshal(b, &list) != nil {
			return nil, errPeerGarbage
		}
		return list, nil
	}
	var open, closed []*fsm.Order
	var away map[fsm.Incarnation]bool
	index, err := n.catchUp(ctx)
	if err != nil {
		return nil, err
	}
	n.replica.view(func(m *fsm.Machine) {
		open, closed = m.Orders()
		away = nodesAway(m)
	})
	if all {
		open = append(open, closed...)
	}
	slices.SortFunc(open, func(a, b *fsm.Order) int { return cmp.Compare(a.ID, b.ID) })
	for _, o := range open {
		list = append(list, orderInfo(o, away, index.now))
	}
	return list, nil
}

// Thaw ends orders, and returns them when they are closed, or as they are when ctx ends.
// A [Refusal] says that there are none such.
func (n *Node) Thaw(ctx context.Context, req ThawRequest, by string) ([]OrderInfo, error) {
	all, err := n.Orders(ctx, true)
	if err != nil {
		return nil, err
	}
	list := []OrderInfo{}
	for _, o := range all {
		if req.means(o) {
			list = append(list, o)
		}
	}
	if req.ID != 0 && len(list) == 0 {
		return nil, req.refusal(all)
	}
	for _, o := range list {
		res, err := n.Submit(ctx, fsm.OrderEnd{Order: fsm.OrderID(o.ID), By: by, Reason: fsm.OrderThawed})
		about := []any{"order", o.ID, "action", o.Action, "asked for by", o.By, "by", by}
		switch {
		case err != nil:
			n.log.Warn("order to be ended, and not known to be", append(about, "error", err)...)
			return nil, fmt.Errorf("it is not known whether order %d is ended: %w", o.ID, err)
		case res.Code == fsm.Refused:
			n.log.Warn("order to be ended: refused", append(about, "reason", res.Reason)...)
			return nil, Refusal(res.Reason)
		}
		n.log.Info("order to be ended", about...)
	}
	for i, o := range list {
		for o.State != fsm.OrderClosed.String() {
			now, err := n.FollowOrder(ctx, o.ID, o.State)
			if err != nil {
				break // it takes longer; what is known is told
			}
			o, list[i] = now, now
		}
	}
	return list, nil
}

// means reports whether an order is one that is to be thawed.
func (r ThawRequest) means(o OrderInfo) bool {
	switch {
	case r.Action != "" && r.Action != o.Action:
		return false
	case r.ID != 0:
		return r.ID == o.ID
	case o.State == fsm.OrderClosed.String():
		return false
	}
	return r.All || slices.ContainsFunc(o.Nodes, func(p OrderNode) bool { return p.Node == r.Node })
}

func (r ThawRequest) refusal(all []OrderInfo) error {
	for _, o := range all {
		if o.ID == r.ID {
			return Refusal(fmt.Sprintf("order %d is a %s, and not a %s", o.ID, o.Action, r.Action))
		}
	}
	return Refusal(fmt.Sprintf("there is no order %d, or it is closed for long", r.ID))
}

func (r ThawRequest) validate() error {
	n := 0
	for _, set := range [...]bool{r.ID != 0, r.Node != "", r.All} {
		if set {
			n++
		}
	}
	if n != 1 {
		return errors.New("which orders? say one of \"id\", \"node\" and \"all\"")
	}
	return nil
}
