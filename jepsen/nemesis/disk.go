package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/lockerd/lockerd/jepsen/db"
)

// powerLoss takes the power from nodes at one instant, as near as may be: they
// see nothing of it, and what they have not brought to the disk is gone.
func powerLoss(nodes []*db.Node) (string, func() error, error) {
	err := each(nodes, func(n *db.Node) error { return n.Stop() })
	if err == nil {
		err = each(nodes, func(n *db.Node) error { return n.Disk.PowerOff() })
	}
	err = errors.Join(err, each(nodes, func(n *db.Node) error { n.Kill(); return nil }))
	on := func() error {
		return each(nodes, func(n *db.Node) error { return errors.Join(n.Disk.PowerOn(), n.Start()) })
	}
	return namesOf(nodes), on, err
}

func power(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return powerLoss(e.some(ctx, rng))
}

func powerAll(_ context.Context, e *Env, _ *rand.Rand) (string, func() error, error) {
	return powerLoss(e.Cluster.Nodes)
}

// stall lets all writes of a node wait.
func stall(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	tell := e.Freezing
	if tell == nil {
		tell = func(string, bool) {}
	}
	tell(one.Disk.Dir, true)
	one.Excuse() // a node gives up on a disk that hangs
	thaw := func() error {
		defer tell(one.Disk.Dir, false)
		if err := one.Disk.Thaw(); err != nil {
			return fmt.Errorf("thaw %s: %w", one.Disk.Dir, err)
		}
		return startAll([]*db.Node{one})() // it may have given up
	}
	return one.Name, thaw, one.Disk.Freeze()
}

// full leaves less space than a node wants to have, or none at all.
func full(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	one.Excuse() // it cannot go on with a log that it cannot write
	left := int64(rng.IntN(2)) * (32 << 20)
	heal := func() error {
		return errors.Join(one.Disk.Empty(), startAll([]*db.Node{one})())
	}
	return fmt.Sprintf("%s has %d MiB left", one.Name, left>>20), heal, one.Disk.Fill(left)
}
