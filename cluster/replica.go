package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// maxSnapshot bounds what a snapshot may make us read: about 20 million locks.
const maxSnapshot = 4 << 30

// replica is this server's copy of the lock table, as Raft drives it. Raft's own
// goroutine is the only writer. What an entry brought about is handed to applied
// before Raft hears that it was applied, so the proposer's answer comes after.
type replica struct {
	applied  func(o fsm.Outcome)  // every entry; must not block
	restored func()               // the table was replaced as a whole; events were skipped
	halt     func(error)          // the log holds what we cannot apply
	written  func(entryBytes int) // for the snapshot policy
	mu       sync.RWMutex
	machine  *fsm.Machine
	ended    endings
	index    uint64        // of the last entry applied
	moved    chan struct{} // closed and replaced when index grows and someone waits
	waiting  int
	halted   bool
}

func newReplica() *replica {
	return &replica{machine: fsm.New(), ended: make(endings, rememberedEnds), moved: make(chan struct{})}
}

// Apply implements raft.FSM. Its answer is an fsm.Outcome, or an error if the
// entry could not be read. Such a node stops: it may not guess what others know.
func (r *replica) Apply(l *raft.Log) any {
	e, err := fsm.DecodeEntry(l.Data)
	if err == nil && r.isHalted() {
		err = errors.New("an earlier entry could not be applied")
	}
	if err != nil {
		err = fmt.Errorf("log entry %d: %w", l.Index, err)
		r.mu.Lock()
		r.halted = true
		r.mu.Unlock()
		r.halt(err)
		return err
	}
	r.mu.Lock()
	o := r.machine.Apply(e)
	r.ended.note(o.Events)
	r.index = l.Index
	if r.waiting > 0 {
		close(r.moved)
		r.moved = make(chan struct{})
		r.waiting = 0
	}
	r.mu.Unlock()
	r.applied(o)
	r.written(len(l.Data))
	return o
}

func (r *replica) isHalted() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.halted
}

// Snapshot implements raft.FSM. Only pointers are copied while Apply waits.
func (r *replica) Snapshot() (raft.FSMSnapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &tableSnapshot{index: r.index, table: r.machine.Snapshot()}, nil
}

// Restore implements raft.FSM.
func (r *replica) Restore(rc io.ReadCloser) error {
	defer func() { _ = rc.Close() }()
	b, err := io.ReadAll(io.LimitReader(rc, maxSnapshot+1))
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	if len(b) > maxSnapshot || len(b) < 8 {
		return fmt.Errorf("snapshot of %d bytes: not between 8 and %d", len(b), maxSnapshot)
	}
	m, err := fsm.Restore(b[8:])
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	r.mu.Lock()
	r.machine = m
	r.index = binary.BigEndian.Uint64(b)
	if r.waiting > 0 {
		close(r.moved)
		r.moved = make(chan struct{})
		r.waiting = 0
	}
	r.mu.Unlock()
	r.restored()
	return nil
}

// view runs f on the table as it is here and now. f must be quick: Apply waits.
func (r *replica) view(f func(*fsm.Machine)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f(r.machine)
}

// snapshot captures the whole table for reading outside the lock.
func (r *replica) snapshot() (fsm.Millis, *fsm.Snapshot) {
	// Capturing changes no hold or wait, but it may note in the table that
	// pointers were shared, so it takes the writer's lock as Raft's own does.
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine.Now(), r.machine.Snapshot()
}

func (r *replica) appliedIndex() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.index
}

// waitFor returns once the entry with that index has been applied here.
func (r *replica) waitFor(ctx context.Context, index uint64) error {
	for {
		r.mu.Lock()
		if r.index >= index {
			r.mu.Unlock()
			return nil
		}
		r.waiting++
		moved := r.moved
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for log entry %d: %w", index, context.Cause(ctx))
		}
	}
}

// tableSnapshot is the table at one index, on its way to disk. The index comes
// first: Raft does not tell it on restore, and reads that wait for an index must
// not wait for entries the snapshot has swallowed.
type tableSnapshot struct {
	index uint64
	table *fsm.Snapshot
}

// Persist implements raft.FSMSnapshot.
func (s *tableSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := sink.Write(binary.BigEndian.AppendUint64(nil, s.index))
	if err == nil {
		err = s.table.Encode(func(b []byte) error {
			_, err := sink.Write(b)
			return err
		})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *tableSnapshot) Release() {}
