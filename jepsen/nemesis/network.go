package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/netns"
)

func (e *Env) healNetwork() error {
	return each(e.Cluster.Nodes, func(n *db.Node) error { return n.Host.Heal() })
}

// apart cuts the nodes of each group off from those of all others.
func (e *Env) apart(groups ...[]*db.Node) error {
	for i, g := range groups {
		var others []string
		for j, o := range groups {
			if i != j {
				others = append(others, ips(o)...)
			}
		}
		if err := each(g, func(n *db.Node) error { return n.Host.Cut(others...) }); err != nil {
			return err
		}
	}
	return nil
}

func ips(nodes []*db.Node) []string {
	var all []string
	for _, n := range nodes {
		all = append(all, n.Host.IP)
	}
	return all
}

func partition(_ context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	all := e.shuffled(rng)
	k := 1 + rng.IntN(len(all)-1)
	return fmt.Sprintf("%s | %s", namesOf(all[:k]), namesOf(all[k:])), e.healNetwork, e.apart(all[:k], all[k:])
}

// isolate cuts the leader off from the other nodes, half of the time from its
// clients as well.
func isolate(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	lead := e.leader(ctx, rng)
	others := slices.DeleteFunc(slices.Clone(e.Cluster.Nodes), func(n *db.Node) bool { return n == lead })
	did := "leader " + lead.Name
	err := e.apart([]*db.Node{lead}, others)
	if err == nil && rng.IntN(2) == 0 {
		did += " and its clients"
		err = lead.Host.Cut(netns.Clients)
	}
	return did, e.healNetwork, err
}

// ring lets each node see a majority, each a different one. With three nodes it is
// a line: two of them do not see each other.
func ring(_ context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	all := e.shuffled(rng)
	n := len(all)
	near := (n/2 + 1) / 2 // on either side
	did := "each sees its neighbours of " + namesOf(all)
	if n == 3 {
		return all[0].Name + " | " + all[2].Name, e.healNetwork, e.apart(all[:1], all[2:])
	}
	for i, node := range all {
		var cut []string
		for j, other := range all {
			d := (i - j + n) % n
			if d > near && n-d > near {
				cut = append(cut, other.Host.IP)
			}
		}
		if err := node.Host.Cut(cut...); err != nil {
			return did, e.healNetwork, err
		}
	}
	return did, e.healNetwork, nil
}

// oneway makes a node deaf to the others, or the others deaf to it.
func oneway(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	others := slices.DeleteFunc(slices.Clone(e.Cluster.Nodes), func(n *db.Node) bool { return n == one })
	if rng.IntN(2) == 0 {
		return one.Name + " is deaf", e.healNetwork, one.Host.Cut(ips(others)...)
	}
	return one.Name + " is mute", e.healNetwork, each(others, func(n *db.Node) error { return n.Host.Cut(one.Host.IP) })
}

// clientCut cuts nodes off from the clients and from nobody else.
func clientCut(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	some := e.some(ctx, rng)
	return namesOf(some), e.healNetwork, each(some, func(n *db.Node) error { return n.Host.Cut(netns.Clients) })
}

// reset answers with resets what others and clients send to a node.
func reset(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	from := []string{netns.Clients}
	for _, n := range e.Cluster.Nodes {
		if n != one {
			from = append(from, n.Host.IP)
		}
	}
	return one.Name, e.healNetwork, one.Host.Reset(from...)
}

func flap(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	one := e.one(ctx, rng)
	return "link of " + one.Name, e.healNetwork, one.Host.Unplug()
}

func loss(_ context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	percent := 5 + rng.IntN(35)
	return fmt.Sprintf("%d%% of all packets", percent), e.healNetwork, each(e.Cluster.Nodes, func(n *db.Node) error { return n.Host.Lose(percent) })
}

func slow(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	some := e.some(ctx, rng)
	kbit := 128 << rng.IntN(4)
	return fmt.Sprintf("%s sends %d kbit/s", namesOf(some), kbit), e.healNetwork, each(some, func(n *db.Node) error { return n.Host.Slow(kbit) })
}

// delay makes the lines of nodes long: every packet takes 20 to 500 ms.
func delay(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	least := time.Duration(20+rng.IntN(230)) * time.Millisecond
	return e.delayed(e.some(ctx, rng), least, 2*least, false)
}

// reorder lets the packets of nodes overtake each other, as each takes a time of its own.
func reorder(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	most := time.Duration(20+rng.IntN(480)) * time.Millisecond
	return e.delayed(e.some(ctx, rng), 0, most, true)
}

func (e *Env) delayed(nodes []*db.Node, least, most time.Duration, overtake bool) (string, func() error, error) {
	heal := func() error {
		idle := each(nodes, func(n *db.Node) error {
			if n.Host.Delayed() == 0 {
				return fmt.Errorf("not a packet of %s was delayed", n.Name)
			}
			return nil
		})
		return errors.Join(idle, e.healNetwork())
	}
	err := each(nodes, func(n *db.Node) error { return n.Host.Delay(least, most, overtake) })
	return fmt.Sprintf("%s: each packet %v to %v", namesOf(nodes), least, most), heal, err
}
