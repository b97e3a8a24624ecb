package cluster

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/lockerd/lockerd/fsm"
)

// rememberedEnds is of how many holds a server remembers why they ended: at some thousands
// of releases a second, for as long as a client tries to learn what has become of its own.
// They take eight bytes each.
const rememberedEnds = 1 << 17

// endings is why the latest holds have ended, as this server has seen it. No two servers
// need to know the same: it is no part of the table, and begins anew with the process.
//
// Fences are given out without gaps, so the last digits of one are its place.
type endings []uint64 // fence and cause

// causeBits is enough for every fsm.Cause.
const causeBits = 4

func (e endings) note(events []fsm.Event) {
	for i := range events {
		if events[i].Kind == fsm.EventReleased {
			f := uint64(events[i].Fence)
			e[f%rememberedEnds] = f<<causeBits | uint64(events[i].Cause)
		}
	}
}

// cause is why a hold has ended; CauseNone if that is not known, or it has not.
func (e endings) cause(f fsm.Fence) fsm.Cause {
	at := e[uint64(f)%rememberedEnds]
	if f == 0 || at>>causeBits != uint64(f) {
		return fsm.CauseNone
	}
	return fsm.Cause(at & (1<<causeBits - 1))
}

// Ended says why a hold has ended of which the cluster has just said that it is over;
// CauseNone if no server in reach remembers.
func (n *Node) Ended(ctx context.Context, f fsm.Fence) (fsm.Cause, error) {
	if n.replica == nil {
		b, err := n.askServer(ctx, askEnded, mustJSON(f))
		if err != nil {
			return fsm.CauseNone, err
		}
		var cause fsm.Cause
		if err := json.Unmarshal(b, &cause); err != nil {
			return fsm.CauseNone, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		return cause, nil
	}
	var cause fsm.Cause
	err := n.view(ctx, func(*fsm.Machine) { cause = n.replica.ended.cause(f) })
	return cause, err
}
