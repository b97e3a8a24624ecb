package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

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

// mute takes the answers away that say which processes live on the host without a node:
// its pidstatd is killed, or stopped so that it answers late; or questions are lost; or
// they take their time on the line.
func mute(_ context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	far := e.Cluster.Far
	switch rng.IntN(4) {
	case 0:
		far.Kill()
		return "pidstatd is killed", far.Start, nil
	case 1:
		return "pidstatd is stopped", far.Continue, far.Stop()
	case 2:
		return "no question reaches pidstatd", far.Host.Heal, far.Host.Deafen(db.PidstatPort)
	}
	const least, most = 200 * time.Millisecond, 900 * time.Millisecond
	return fmt.Sprintf("each packet of its host takes %v to %v", least, most), far.Host.Heal, far.Host.Delay(least, most, true)
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
