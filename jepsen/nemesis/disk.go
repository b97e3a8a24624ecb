package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

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

// ioError lets a node's disk fail under it: every call, or every write, of which only
// fsync tells, with EIO both. A node may end at that, and must not confirm anything that it
// could not write.
func ioError(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	one.Excuse()
	heal := func() error {
		one.Kill()
		return errors.Join(one.Disk.PowerOn(), one.Start())
	}
	if rng.IntN(2) == 0 {
		return one.Name + ": every call fails", heal, one.Disk.PowerOff()
	}
	return one.Name + ": fsync fails", heal, one.Disk.WearOut()
}

// stall lets all writes of a node wait.
func stall(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	e.frozen(one, true)
	one.Excuse() // a node gives up on a disk that hangs
	thaw := func() error {
		defer e.frozen(one, false)
		if err := one.Disk.Thaw(); err != nil {
			return fmt.Errorf("thaw %s: %w", one.Disk.Dir, err)
		}
		return startAll([]*db.Node{one})() // it may have given up
	}
	return one.Name, thaw, one.Disk.Freeze()
}

// frozen tells of a disk that is frozen, or not any more.
func (e *Env) frozen(n *db.Node, is bool) {
	if e.Freezing != nil {
		e.Freezing(n.Disk.Dir, is)
	}
}

// slowDisk makes the disks of nodes pause for 20 to 170 ms, again and again. No node
// may give up for that.
func slowDisk(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	some := e.some(ctx, rng)
	pause := time.Duration(20+rng.IntN(150)) * time.Millisecond
	ends := make([]func() (int, error), len(some))
	heal := func() error {
		var errs []error
		for i, n := range some {
			if ends[i] == nil {
				continue
			}
			_, err := ends[i]()
			errs = append(errs, err)
			e.frozen(n, false)
		}
		return errors.Join(errs...)
	}
	for i, n := range some {
		e.frozen(n, true)
		var err error
		if ends[i], err = n.Disk.Slow(pause); err != nil {
			return "", heal, err
		}
	}
	return fmt.Sprintf("%s: %v a time", namesOf(some), pause), heal, nil
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
