package cluster

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// ErrDisk is the end of a node whose disk has failed or hung.
var ErrDisk = errors.New("disk")

// diskHang is how long one write may take before the disk counts as hung. Raft's
// heartbeats do not go by the disk, so a leader on a hung one would keep its
// office for ever.
const diskHang = 10 * time.Second

// guardedDisk stands between Raft and its stores, and ends the node at the first
// error. Raft would retry or panic; but after a failed fsync the kernel may have
// dropped the dirty pages, and what is read back proves nothing about the disk.
//
// A guarded call that has failed never returns: Raft must not act on it, and the
// process is about to end.
type guardedDisk struct {
	log    raft.LogStore
	stable raft.StableStore
	fail   func(error)

	mu      sync.Mutex
	writes  uint64               // begun so far
	writing map[uint64]time.Time // when each write in progress began: Raft cuts the log while it appends
}

func newGuardedDisk(s *Stores, fail func(error)) *guardedDisk {
	return &guardedDisk{log: s.Log, stable: s.Stable, fail: fail, writing: make(map[uint64]time.Time)}
}

// hung reports how long the oldest write has been going on, if that is too long.
func (d *guardedDisk) hung() (took time.Duration, hung bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, began := range d.writing {
		took = max(took, time.Since(began))
	}
	return took, took > diskHang
}

func (d *guardedDisk) write(what string, f func() error) error {
	d.mu.Lock()
	d.writes++
	id := d.writes
	d.writing[id] = time.Now()
	d.mu.Unlock()
	err := f()
	d.mu.Lock()
	delete(d.writing, id)
	d.mu.Unlock()
	return d.check(what, err)
}

func (d *guardedDisk) check(what string, err error) error {
	if err == nil {
		return nil
	}
	if damaged := (*damage)(nil); errors.As(err, &damaged) {
		d.fail(fmt.Errorf("%w: %w", ErrDisk, damaged))
		select {}
	}
	d.fail(fmt.Errorf("%w: %s: %w (the node stops: check the disk, then start it again)", ErrDisk, what, err))
	select {}
}

// FirstIndex implements raft.LogStore.
func (d *guardedDisk) FirstIndex() (uint64, error) {
	i, err := d.log.FirstIndex()
	return i, d.check("read log", err)
}

// LastIndex implements raft.LogStore.
func (d *guardedDisk) LastIndex() (uint64, error) {
	i, err := d.log.LastIndex()
	return i, d.check("read log", err)
}

// GetLog implements raft.LogStore. A missing entry is an answer, not a fault.
func (d *guardedDisk) GetLog(index uint64, l *raft.Log) error {
	err := d.log.GetLog(index, l)
	if errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	return d.check("read log", err)
}

// StoreLog implements raft.LogStore.
func (d *guardedDisk) StoreLog(l *raft.Log) error {
	return d.write("write log", func() error { return d.log.StoreLog(l) })
}

// StoreLogs implements raft.LogStore.
func (d *guardedDisk) StoreLogs(ls []*raft.Log) error {
	return d.write("write log", func() error { return d.log.StoreLogs(ls) })
}

// DeleteRange implements raft.LogStore.
func (d *guardedDisk) DeleteRange(from, to uint64) error {
	return d.write("cut log", func() error { return d.log.DeleteRange(from, to) })
}

// Set implements raft.StableStore.
func (d *guardedDisk) Set(key, val []byte) error {
	return d.write("write vote", func() error { return d.stable.Set(key, val) })
}

// SetUint64 implements raft.StableStore.
func (d *guardedDisk) SetUint64(key []byte, val uint64) error {
	return d.write("write term", func() error { return d.stable.SetUint64(key, val) })
}

// Get implements raft.StableStore. A key that was never set is an answer.
func (d *guardedDisk) Get(key []byte) ([]byte, error) {
	b, err := d.stable.Get(key)
	if notFound(err) {
		return b, err
	}
	return b, d.check("read vote", err)
}

// GetUint64 implements raft.StableStore. A key that was never set is an answer.
func (d *guardedDisk) GetUint64(key []byte) (uint64, error) {
	v, err := d.stable.GetUint64(key)
	if notFound(err) {
		return v, err
	}
	return v, d.check("read term", err)
}

// notFound tells a missing key from a fault. Raft's in-memory store has no
// sentinel for it, only the same text.
func notFound(err error) bool {
	return err != nil && (errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() == "not found")
}
