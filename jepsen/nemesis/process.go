package nemesis

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/lockerd/lockerd/jepsen/db"
)

// startAll starts what does not run, at the end of a fault.
func startAll(nodes []*db.Node) func() error {
	return func() error {
		return each(nodes, func(n *db.Node) error {
			if n.Running() {
				return nil
			}
			return n.Start()
		})
	}
}

func killed(nodes []*db.Node) (string, func() error, error) {
	return namesOf(nodes), startAll(nodes), each(nodes, func(n *db.Node) error { n.Kill(); return nil })
}

func kill(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return killed(e.some(ctx, rng))
}

func killAll(_ context.Context, e *Env, _ *rand.Rand) (string, func() error, error) {
	return killed(e.Cluster.Nodes)
}

func paused(nodes []*db.Node) (string, func() error, error) {
	goOn := func() error { return each(nodes, func(n *db.Node) error { return n.Continue() }) }
	return namesOf(nodes), goOn, each(nodes, func(n *db.Node) error { return n.Stop() })
}

func pause(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return paused(e.some(ctx, rng))
}

func pauseLeader(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return paused([]*db.Node{e.leader(ctx, rng)})
}

func pauseAll(_ context.Context, e *Env, _ *rand.Rand) (string, func() error, error) {
	return paused(e.Cluster.Nodes)
}

// restart stops nodes as an operator does, and starts them later.
func restart(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	some := e.some(ctx, rng)
	return namesOf(some), startAll(some), each(some, func(n *db.Node) error { return n.Terminate() })
}

// rolling restarts all nodes, each as soon as the one before serves again.
func rolling(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	all := e.shuffled(rng)
	for _, n := range all {
		if err := errors.Join(n.Terminate(), n.Start()); err != nil {
			return "", startAll(all), err
		}
		if err := n.AwaitReady(ctx); err != nil {
			return "", startAll(all), err
		}
	}
	return namesOf(all), nil, nil
}
