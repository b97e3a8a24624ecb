package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
)

// noticeTime is how long a node that was started on a damaged log may take to say so.
const noticeTime = 3 * time.Second

// logFile is where a node keeps its log, in its data directory.
const logFile = "data/raft.db"

// name is what the names of locks look like in a log.
var name = regexp.MustCompile(`l[0-9]`)

// bitflip flips one bit of a node's log while the node is down: anywhere, or in a
// name of a lock. A node that refuses such a log gets the sound one back, as from a
// backup of this moment. One that takes it must not tell another story than the others.
func bitflip(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.damage(ctx, rng, func(b []byte) string {
		at := 0
		if places := name.FindAllIndex(b, -1); len(places) > 0 && rng.IntN(2) == 0 {
			at = places[rng.IntN(len(places))][1] - 1
			b[at] ^= 1 // another digit
			return fmt.Sprintf("a name at byte %d", at)
		}
		for range 1000 { // most of a young log is empty
			if at = rng.IntN(len(b)); b[at] != 0 {
				break
			}
		}
		b[at] ^= 1 << rng.IntN(8)
		return fmt.Sprintf("byte %d", at)
	}, nil)
}

// truncate cuts the end off a node's log while the node is down.
func truncate(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.damage(ctx, rng, nil, func(n int64) int64 { return rng.Int64N(n) })
}

func (e *Env) damage(ctx context.Context, rng *rand.Rand, flip func([]byte) string, cut func(int64) int64) (string, func() error, error) {
	n := e.one(ctx, rng)
	n.Kill()
	path := filepath.Join(n.Disk.Dir, logFile)
	sound, err := os.ReadFile(path)
	if err != nil {
		return "", startAll([]*db.Node{n}), fmt.Errorf("damage the log of %s: %w", n.Name, err)
	}
	what := ""
	bad := append([]byte(nil), sound...)
	if flip != nil {
		what = flip(bad)
	} else {
		bad = bad[:cut(int64(len(bad)))]
		what = fmt.Sprintf("%d of %d bytes left", len(bad), len(sound))
	}
	if err := errors.Join(os.WriteFile(path, bad, 0o600), n.Start()); err != nil {
		return "", startAll([]*db.Node{n}), err
	}
	n.Excuse()
	ended := false
	select {
	case <-n.Ended():
		ended = true
		what += ", refused"
	case <-time.After(noticeTime):
		what += ", taken"
	}
	heal := func() error {
		if !ended {
			return startAll([]*db.Node{n})()
		}
		return errors.Join(os.WriteFile(path, sound, 0o600), n.Start())
	}
	return n.Name + ": " + what, heal, nil
}
