package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/history"
)

// memberNote is the F of what becomes of servers that are removed.
const memberNote = "member"

// note adds to the history what a fault does while it lasts.
func (e *Env) note(kind, format string, args ...any) {
	e.Rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: kind, Value: fmt.Sprintf(format, args...)})
}

// betweenTransfers is the mean time between two hand-overs of one fault.
const betweenTransfers = 700 * time.Millisecond

// transfer hands the leadership over, again and again.
func transfer(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	did := ""
	err := db.Await(ctx, "a hand-over", func() (err error) {
		did, err = e.handOver(ctx, rng)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	more, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for wait(more, time.Duration((0.5+rng.Float64())*float64(betweenTransfers))) == nil {
			// One under way is not broken off: we would not know what became of it.
			did, err := e.handOver(context.Background(), rng)
			if err != nil {
				did = err.Error()
			}
			e.note("transfer", "%s", did)
		}
	}()
	return did, func() error { stop(); <-done; return nil }, nil
}

// handOver asks any node for another leader, and makes sure that there is one. That it
// is refused, or its outcome unknown, is an error, but harms nobody.
func (e *Env) handOver(ctx context.Context, rng *rand.Rand) (did string, err error) {
	was, term := e.Cluster.Leader(ctx)
	if was == nil {
		return "", errors.New("nobody leads whose leadership could be handed over")
	}
	others := slices.DeleteFunc(e.shuffled(rng), func(n *db.Node) bool { return n == was })
	to := others[0].Name
	if rng.IntN(3) == 0 {
		to = "" // whoever is best
	}
	is, err := e.any(rng).Transfer(ctx, to)
	if err != nil {
		return "", fmt.Errorf("from %s to %q: %w", was.Name, to, err)
	}
	if _, now := e.Cluster.Leader(ctx); now <= term {
		return "", fmt.Errorf("from %s to %q: %s was said to lead, but the term is %d and not above %d", was.Name, to, is, now, term)
	}
	return was.Name + " to " + is, nil
}

// replace takes servers out, each as soon as the one before has its successor, until
// nobody is left of three who was there before, and of more no majority.
func replace(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	some := e.shuffled(rng)[:max(3, len(e.Cluster.Nodes)/2+1)]
	for _, n := range some {
		n.Excuse()
		id, err := e.remove(ctx, rng, n)
		if err == nil {
			err = e.succeed(ctx, n, id)
		}
		if err != nil {
			return "", nil, err
		}
	}
	return namesOf(some), nil, nil
}

// member takes servers out of the cluster, one or more, the leader or others, running
// or not. They run on with their data as long as the fault lasts, and come back with an
// empty disk as new ones. At any time the voters are enough to elect a leader.
func member(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	gone := []*db.Node{e.one(ctx, rng)}
	if n := len(e.Cluster.Nodes); n > 3 && rng.IntN(2) == 0 {
		gone = e.shuffled(rng)[:(n-1)/2]
	}
	did := "removed"
	down := rng.IntN(3) == 0
	var ids []string
	for i, n := range gone {
		did += " " + n.Name
		n.Excuse() // it may end when it learns of it
		if down {
			n.Kill()
		}
		id, err := e.remove(ctx, rng, n)
		if err != nil {
			return did, e.restoring(gone[:i], ids), err
		}
		ids = append(ids, id)
		if down {
			did += " (was down)"
			if err := n.Start(); err != nil {
				return did, e.restoring(gone[:i+1], ids), err
			}
			n.Excuse()
		}
	}
	return did, e.restoring(gone, ids), nil
}

// restoring brings servers back that were removed.
func (e *Env) restoring(gone []*db.Node, ids []string) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), injectTime)
		defer cancel()
		for i, n := range gone {
			if err := e.succeed(ctx, n, ids[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

// remove takes a server out, whatever becomes of single requests, and returns the id
// that it had.
func (e *Env) remove(ctx context.Context, rng *rand.Rand, n *db.Node) (id string, err error) {
	err = db.Await(ctx, "the id of "+n.Name, func() error {
		id, err = e.idOf(ctx, n)
		return err
	})
	if err != nil {
		return "", err
	}
	what := id
	if rng.IntN(2) == 0 {
		what = n.Name
	}
	last := ""
	return id, db.Await(ctx, n.Name+" to be removed", func() error {
		via := e.any(rng)
		err := via.Remove(ctx, what)
		what = id // the name may become that of a new server, the id does not
		if err == nil {
			e.note(memberNote, "%s removed %s", via.Name, n.Name)
			return e.isOut(ctx, id)
		}
		// It may have been done all the same, or by a request before.
		if e.isOut(ctx, id) == nil {
			e.note(memberNote, "%s is removed, though %s says: %v", n.Name, via.Name, err)
			return nil
		}
		if err.Error() != last {
			last = err.Error()
			e.note(memberNote, "%s: %v", via.Name, err)
		}
		return err
	})
}

// idOf is the id of a node's server. Nobody else knows the name of one that has not been
// there since all lost their power.
func (e *Env) idOf(ctx context.Context, n *db.Node) (string, error) {
	voters, err := e.Cluster.Voters(ctx)
	if err != nil {
		return "", err
	}
	for _, s := range voters {
		if s.Addr == n.Peer() {
			return s.ID, nil
		}
	}
	return "", fmt.Errorf("%s has no vote: the voters are %v", n.Name, voters)
}

// isOut says whether a server has no vote any more.
func (e *Env) isOut(ctx context.Context, id string) error {
	voters, err := e.Cluster.Voters(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(voters, func(s db.Server) bool { return s.ID == id }) {
		return fmt.Errorf("%s has its vote still", id)
	}
	return nil
}

// succeed wipes the disk of a server that was removed, starts a new one in its place,
// and waits until that has its vote.
func (e *Env) succeed(ctx context.Context, n *db.Node, id string) error {
	state := "still ran"
	if !n.Running() {
		state = "had ended"
	}
	back := false
	if err := db.Await(ctx, "a look at the voters", func() error {
		voters, err := e.Cluster.Voters(ctx)
		back = slices.ContainsFunc(voters, func(s db.Server) bool { return s.ID == id })
		return err
	}); err != nil {
		return err
	}
	if back {
		return fmt.Errorf("%s has its vote again, though it was removed (id %s)", n.Name, id)
	}
	n.Kill()
	if err := errors.Join(n.Disk.Wipe(), n.Start()); err != nil {
		return err
	}
	began := time.Now()
	err := db.Await(ctx, n.Name+" to have a vote", func() error {
		s, err := n.Status(ctx, false)
		if err != nil {
			return err
		}
		if s.ID == id {
			return fmt.Errorf("%s has its old id, with a new disk", n.Name)
		}
		voters, err := e.Cluster.Voters(ctx)
		if err == nil && !slices.ContainsFunc(voters, func(v db.Server) bool { return v.ID == s.ID }) {
			err = fmt.Errorf("the voters are %v", voters)
		}
		return err
	})
	if err == nil {
		err = n.AwaitReady(ctx)
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", n.Name, err)
	}
	e.note(memberNote, "%s, which %s, has a successor after %v", n.Name, state, time.Since(began).Round(time.Millisecond))
	return nil
}
