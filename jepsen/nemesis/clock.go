package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
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

// strobe moves the wall clocks of nodes to and fro, several times a second, by 4 ms to
// four minutes.
func strobe(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	some := e.some(ctx, rng)
	far := time.Duration(4 * math.Pow(65536, rng.Float64()) * float64(time.Millisecond)).Round(time.Millisecond)
	every := time.Duration(50+rng.IntN(250)) * time.Millisecond
	did, back, err := e.setClocks(some, 1, far)
	if err != nil {
		return "", back, err
	}
	more, stop := context.WithCancel(context.Background())
	moved := make(chan error, 1)
	go func() {
		var err error
		for there := true; err == nil && wait(more, every) == nil; {
			there = !there
			to := time.Duration(0)
			if there {
				to = far
			}
			err = each(some, func(n *db.Node) error { return n.SetClock(1, to) })
		}
		moved <- err
	}()
	heal := func() error { stop(); return errors.Join(<-moved, back()) }
	return fmt.Sprintf("%s, to and fro every %v", did, every), heal, nil
}

// Fastest is the highest rate at which clockrate lets a clock run. The lowest is its
// inverse.
const Fastest = 4

// clockRate lets the clocks of nodes run at a quarter to four times their pace.
func clockRate(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.setClocks(e.some(ctx, rng), math.Pow(Fastest, 2*rng.Float64()-1), 0)
}

// slowLeader cuts the leader off from the other nodes, and not from its clients, while
// its clock is slow and theirs are fast: it goes on believing that it leads long after
// another one has been elected.
func slowLeader(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	lead := e.leader(ctx, rng)
	others := slices.DeleteFunc(slices.Clone(e.Cluster.Nodes), func(n *db.Node) bool { return n == lead })
	did, clock, err := e.setClocks([]*db.Node{lead}, 1.0/Fastest, 0)
	if err != nil {
		return did, clock, err
	}
	heal := func() error { return errors.Join(clock(), e.healNetwork()) }
	if err := e.apart([]*db.Node{lead}, others); err != nil {
		return did, heal, err
	}
	more, clocks, err := e.setClocks(others, Fastest, 0)
	heal = func() error { return errors.Join(clock(), clocks(), e.healNetwork()) }
	return "leader " + did + "; " + more, heal, err
}
