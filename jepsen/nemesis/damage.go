package nemesis

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
)

// noticeTime bounds how long a node that was started on damaged files may take to serve,
// or to end.
const noticeTime = 20 * time.Second

// Where a node keeps its log and its snapshots, in its data directory.
const (
	logFile      = "data/raft.db"
	snapshotDirs = "data/snapshots/*-*-*[0-9]" // TERM-INDEX-TIME; those begun end in .tmp
)

// telling is what a log or a snapshot has that matters most: the names of locks, and what
// the table is said to be the state after.
var telling = regexp.MustCompile(`l[0-9]|"Index":[0-9]+`)

// damage is one way to spoil a file. It changes the content, and says where.
type damage func(rng *rand.Rand, b []byte) ([]byte, string)

// flip flips one bit: anywhere, or of a digit that matters.
func flip(rng *rand.Rand, b []byte) ([]byte, string) {
	at := 0
	if places := telling.FindAllIndex(b, -1); len(places) > 0 && rng.IntN(2) == 0 {
		at = places[rng.IntN(len(places))][1] - 1
		b[at] ^= 1 // another digit
		return b, fmt.Sprintf("the digit at byte %d", at)
	}
	for range 1000 { // most of a young log is empty
		if at = rng.IntN(len(b)); b[at] != 0 {
			break
		}
	}
	b[at] ^= 1 << rng.IntN(8)
	return b, fmt.Sprintf("byte %d", at)
}

// cut cuts the end off.
func cut(rng *rand.Rand, b []byte) ([]byte, string) {
	left := rng.IntN(len(b))
	return b[:left], fmt.Sprintf("%d of %d bytes left", left, len(b))
}

// bitflip flips one bit of a node's log while the node is down. A node that refuses such
// a log gets the sound one back, as from a backup of this moment. One that takes it must
// not tell another story than the others.
func bitflip(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.spoilLog(ctx, rng, flip)
}

// truncate cuts the end off a node's log while the node is down.
func truncate(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.spoilLog(ctx, rng, cut)
}

func (e *Env) spoilLog(ctx context.Context, rng *rand.Rand, how damage) (string, func() error, error) {
	n := e.one(ctx, rng)
	n.Kill()
	return e.spoil(ctx, rng, n, how, []string{filepath.Join(n.Disk.Dir, logFile)})
}

// snapFlip flips one bit of a node's newest snapshot, or of every one that it has, while
// it is down: in the table, or in what there is beside it, such as its index. A node
// may refuse it, or begin at an older one and have the rest from others.
func snapFlip(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.spoilSnapshots(ctx, rng, flip)
}

// snapCut cuts the end off them.
func snapCut(ctx context.Context, e *Env, rng *rand.Rand) (string, func() error, error) {
	return e.spoilSnapshots(ctx, rng, cut)
}

func (e *Env) spoilSnapshots(ctx context.Context, rng *rand.Rand, how damage) (string, func() error, error) {
	n := e.one(ctx, rng)
	err := db.Await(ctx, "a snapshot of "+n.Name, func() error {
		_, err := snapshots(n)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	n.Kill()
	dirs, err := snapshots(n) // while it ran it may have dropped one
	if err != nil {
		return "", startAll([]*db.Node{n}), err
	}
	if rng.IntN(2) == 0 {
		dirs = dirs[:1]
	}
	file := []string{"state.bin", "meta.json"}[rng.IntN(2)]
	for i, d := range dirs {
		dirs[i] = filepath.Join(d, file)
	}
	return e.spoil(ctx, rng, n, how, dirs)
}

// snapshots are the directories of a node's snapshots, the newest first.
func snapshots(n *db.Node) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(n.Disk.Dir, snapshotDirs))
	if err == nil && len(dirs) == 0 {
		err = errors.New("it has taken none")
	}
	index := func(dir string) (i uint64) {
		_, rest, _ := strings.Cut(filepath.Base(dir), "-")
		_, _ = fmt.Sscan(strings.Replace(rest, "-", " ", 1), &i) // what is no snapshot comes last
		return i
	}
	slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(index(b), index(a)) })
	return dirs, err
}

// spoil damages files of a node that is down, starts it, and waits until it serves or
// has ended.
func (e *Env) spoil(ctx context.Context, rng *rand.Rand, n *db.Node, how damage, paths []string) (string, func() error, error) {
	did := n.Name + ":"
	restore := func() error { return nil }
	for _, path := range paths {
		sound, err := os.ReadFile(path)
		if err != nil || len(sound) == 0 {
			return "", startAll([]*db.Node{n}), errors.Join(fmt.Errorf("damage %s: %d bytes", path, len(sound)), err)
		}
		before := restore
		restore = func() error { return errors.Join(before(), os.WriteFile(path, sound, 0o600)) }
		bad, where := how(rng, bytes.Clone(sound))
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			return "", func() error { return errors.Join(restore(), n.Start()) }, err
		}
		did += fmt.Sprintf(" %s, %s;", strings.TrimPrefix(path, n.Disk.Dir+"/data/"), where)
	}
	if err := n.Start(); err != nil {
		return "", startAll([]*db.Node{n}), err
	}
	n.Excuse()
	if !served(ctx, n) && !n.Running() {
		return did + " refused", func() error { return errors.Join(restore(), n.Start()) }, nil
	}
	// What it has confirmed since would be gone with the sound files.
	return did + " taken", startAll([]*db.Node{n}), nil
}

// served waits until a node serves or has ended, and says which.
func served(ctx context.Context, n *db.Node) bool {
	ctx, cancel := context.WithTimeout(ctx, noticeTime)
	defer cancel()
	serves := false
	_ = db.Await(ctx, n.Name+" to serve", func() error { // what it does not do in time, the checks will see
		err := n.Ready(ctx)
		serves = err == nil
		if !n.Running() {
			return nil
		}
		return err
	})
	return serves
}
