package nemesis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// Env is what faults act on.
type Env struct {
	Cluster *db.Cluster
	Rec     *history.Recorder
	// Freezing tells somebody who outlives this process which directory's file
	// system is frozen, and that it is not any more. May be nil.
	Freezing func(dir string, frozen bool)
	// Clocks says that the nodes were built with clocks that can be set.
	Clocks bool
}

// fault is one kind. It returns what it did, in words, and how to undo it.
type fault func(ctx context.Context, e *Env, rng *rand.Rand) (did string, heal func() error, err error)

var kinds = map[string]fault{
	"partition": partition,
	"isolate":   isolate,
	"ring":      ring,
	"oneway":    oneway,
	"clientcut": clientCut,
	"reset":     reset,
	"flap":      flap,
	"loss":      loss,
	"slow":      slow,
	"delay":     delay,
	"reorder":   reorder,
	"kill":      kill,
	"killall":   killAll,
	"mute":      mute,
	"pause":     pause,
	"pauselead": pauseLeader,
	"pauseall":  pauseAll,
	"restart":   restart,
	"rolling":   rolling,
	"power":     power,
	"powerall":  powerAll,
	"stall":     stall,
	"slowdisk":  slowDisk,
	"full":      full,
	"ioerror":   ioError,
	"transfer":  transfer,
	"member":    member,
	"replace":   replace,
	"bitflip":   bitflip,
	"truncate":  truncate,
	"snapflip":  snapFlip,
	"snapcut":   snapCut,
	"clockjump": clockJump,
	"clockrate": clockRate,
	"slowlead":  slowLeader,
	"strobe":    strobe,
}

// Kinds are the names of all faults.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds)) }

// NeedsClock says whether a fault needs nodes with clocks that can be set.
func NeedsClock(kind string) bool {
	return slices.Contains([]string{"clockjump", "clockrate", "slowlead", "strobe"}, kind)
}

// NeedsSnapshots says whether a fault needs nodes that take snapshots often.
func NeedsSnapshots(kind string) bool { return kind == "snapflip" || kind == "snapcut" }

// Damages says whether a fault changes what is on a disk, behind the back of whoever has
// written it.
func Damages(kind string) bool {
	return kind == "bitflip" || kind == "truncate" || NeedsSnapshots(kind)
}

// NeedsFar says whether a fault needs a host without a node.
func NeedsFar(kind string) bool { return kind == "mute" }

// Removes says whether a fault takes servers out of the cluster.
func Removes(kind string) bool { return kind == "member" || kind == "replace" }

// Hastens says whether a fault lets clocks run fast, at most by Fastest.
func Hastens(kind string) bool { return kind == "clockrate" || kind == "slowlead" }

// Usual are all faults but those that damage what is on the disk. far says that there is a
// host without a node.
func Usual(far bool) []string {
	return slices.DeleteFunc(Kinds(), func(k string) bool {
		return Damages(k) || NeedsFar(k) && !far
	})
}

// Known says whether there is such a fault.
func Known(kind string) bool { return kinds[kind] != nil }

// injectTime bounds how long a fault may take to be injected.
const injectTime = 60 * time.Second

// Run injects the faults of a schedule, each at its time, until ctx ends. All of
// them are healed when it returns. An error is one of the harness: a fault that
// could not be injected or healed.
func Run(ctx context.Context, e *Env, faults []gen.Fault) error {
	began := time.Now()
	for _, f := range faults {
		if wait(ctx, time.Until(began.Add(f.At))) != nil {
			return nil
		}
		if err := Supervise(e.Cluster); err != nil {
			return err
		}
		if err := e.inject(ctx, f); err != nil {
			return fmt.Errorf("fault %s at %v: %w", f.Kind, f.At, err)
		}
	}
	return nil
}

// Supervise starts nodes that do not run, as an init system does: one whose disk was
// full may take a while to give up, and then the fault is over already.
func Supervise(c *db.Cluster) error { return startAll(c.Nodes)() }

func (e *Env) inject(ctx context.Context, f gen.Fault) error {
	rng := rand.New(rand.NewPCG(f.Seed, 1))
	e.Rec.Add(history.Op{Process: history.Nemesis, Type: history.Invoke, F: f.Kind})
	act, cancel := context.WithTimeout(context.WithoutCancel(ctx), injectTime)
	defer cancel()
	did, heal, err := kinds[f.Kind](act, e, rng)
	if err != nil {
		if heal != nil {
			err = errors.Join(err, heal())
		}
		return err
	}
	e.Rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: f.Kind, Value: did})
	_ = wait(ctx, f.For)
	if heal != nil {
		err = heal()
	}
	e.Rec.Add(history.Op{Process: history.Nemesis, Type: history.OK, F: f.Kind, Value: "healed"})
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leader is the node that leads, or any if none does.
func (e *Env) leader(ctx context.Context, rng *rand.Rand) *db.Node {
	if n, _ := e.Cluster.Leader(ctx); n != nil {
		return n
	}
	return e.any(rng)
}

func (e *Env) any(rng *rand.Rand) *db.Node {
	return e.Cluster.Nodes[rng.IntN(len(e.Cluster.Nodes))]
}

// one is the leader half of the time.
func (e *Env) one(ctx context.Context, rng *rand.Rand) *db.Node {
	if rng.IntN(2) == 0 {
		return e.any(rng)
	}
	return e.leader(ctx, rng)
}

// some is one node, the leader, a minority, or a majority.
func (e *Env) some(ctx context.Context, rng *rand.Rand) []*db.Node {
	n := len(e.Cluster.Nodes)
	shuffled := e.shuffled(rng)
	switch rng.IntN(4) {
	case 0:
		return []*db.Node{e.any(rng)}
	case 1:
		return []*db.Node{e.leader(ctx, rng)}
	case 2:
		return shuffled[:max(1, (n-1)/2)]
	}
	return shuffled[:n/2+1]
}

func (e *Env) shuffled(rng *rand.Rand) []*db.Node {
	all := slices.Clone(e.Cluster.Nodes)
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// each does the same to several nodes at a time.
func each(nodes []*db.Node, do func(*db.Node) error) error {
	var all sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		all.Go(func() { errs[i] = do(n) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func namesOf(nodes []*db.Node) string {
	s := ""
	for i, n := range nodes {
		if i > 0 {
			s += " "
		}
		s += n.Name
	}
	return s
}
