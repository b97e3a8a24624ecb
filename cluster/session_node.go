package cluster

import (
	"context"

	"github.com/lockerd/lockerd/fsm"
)

// nodeForSessions gives Node's claims the type that sessions know them by.
type nodeForSessions struct{ *Node }

func (n nodeForSessions) Acquire(ctx context.Context, a fsm.Acquire, notify func(fsm.Event)) (sessionClaim, fsm.Result, error) {
	return n.Node.Acquire(ctx, a, notify)
}

func (n nodeForSessions) Attach(ctx context.Context, owner string, fence fsm.Fence, notify func(fsm.Event)) (sessionClaim, fsm.Result, error) {
	c, res, err := n.Node.Attach(ctx, owner, fence, notify)
	if err != nil {
		return nil, res, err
	}
	return c, res, nil
}

var _ sessionNode = nodeForSessions{}
