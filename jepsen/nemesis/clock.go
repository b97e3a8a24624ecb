package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
)

var errNoClock = errors.New("the nodes were built without clocks that can be set")

// setClocks sets the clocks of nodes until they are healed.
func (e *Env) setClocks(nodes []*db.Node, rate float64, offset time.Duration) (string, func() error, error) {
	if !e.Clocks {
		return "", nil, errNoClock
	}
	heal := func() error { return each(nodes, func(n *db.Node) error { return n.SetClock(1, 0) }) }
	err := each(nodes, func(n *db.Node) error { return n.SetClock(rate, offset) })
	return fmt.Sprintf("%s: rate %.2f, offset %v", namesOf(nodes), rate, offset), heal, err
}

// clockJump moves the wall clocks of nodes by a second to a year, either way.
func clockJump(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	const year = 365 * 24 * 3600
	jump := time.Duration(math.Pow(year, rng.Float64()) * float64(time.Second)).Round(time.Second)
	if rng.IntN(2) == 0 {
		jump = -jump
	}
	return e.setClocks(e.some(ctx, rng), 1, jump)
}

// Fastest is the highest rate at which clockrate lets a clock run. The lowest is its
// inverse.
const Fastest = 4

// clockRate lets the clocks of nodes run at a quarter to four times their pace.
func clockRate(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.setClocks(e.some(ctx, rng), math.Pow(Fastest, 2*rng.Float64()-1), 0)
}
