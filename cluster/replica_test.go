package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

func quietReplica() *replica {
	r := newReplica()
	r.applied, r.restored = func(fsm.Outcome) {}, func() {}
	r.halt, r.written = func(error) {}, func(int) {}
	return r
}

func entryOf(now fsm.Millis, commands ...fsm.Command) []byte {
	e := fsm.Entry{Now: now}
	for _, c := range commands {
		e.Proposals = append(e.Proposals, fsm.Proposal{Command: c})
	}
	return fsm.AppendEntry(nil, e)
}

func persist(t *testing.T, r *replica) []byte {
	t.Helper()
	snap, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	store := &simSnapshots{}
	sink, err := store.Create(1, 1, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := snap.Persist(sink); err != nil {
		t.Fatal(err)
	}
	return store.data
}

// TestSnapshotKeepsTheIndex restores a snapshot elsewhere, under a reader that waits
// for an entry which the snapshot has swallowed.
func TestSnapshotKeepsTheIndex(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := quietReplica()
		r.Apply(&raft.Log{Index: 41, Data: entryOf(5, fsm.Acquire{Owner: "amy", Locks: []string{"a"}})})
		b := persist(t, r)

		to := quietReplica()
		read := make(chan error, 1)
		go func() { read <- to.waitFor(context.Background(), 41) }()
		synctest.Wait()
		if err := to.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-read:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the reader waits on")
		}
		if to.appliedIndex() != 41 || to.machine.Digest() != r.machine.Digest() {
			t.Errorf("index %d, digests %x and %x", to.appliedIndex(), to.machine.Digest(), r.machine.Digest())
		}
		late, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := to.waitFor(late, 42); err == nil {
			t.Error("an entry is there that was never applied")
		}
	})
}

// TestRestoreRefusesGarbage damages a snapshot in many ways. The table must stay
// what it was.
func TestRestoreRefusesGarbage(t *testing.T) {
	r := quietReplica()
	for i := range 20 {
		r.Apply(&raft.Log{Index: uint64(i + 1), Data: entryOf(5, fsm.Acquire{Owner: "amy", Locks: []string{string(rune('a' + i))}})})
	}
	whole := persist(t, r)
	before := r.machine.Digest()
	bad := [][]byte{nil, whole[:7], whole[:8], append(binary.BigEndian.AppendUint64(nil, 9), "garbage"...)}
	for cut := 9; cut < len(whole); cut += 7 {
		bad = append(bad, whole[:cut])
	}
	for i, b := range bad {
		if err := r.Restore(io.NopCloser(bytes.NewReader(b))); err == nil {
			t.Errorf("case %d, %d bytes: restored", i, len(b))
		}
	}
	if r.machine.Digest() != before || r.appliedIndex() != 20 {
		t.Error("a refused snapshot has changed the table")
	}
}

// TestAnUnreadableEntryHalts applies what no release has written, and then what
// could be read: a replica that has skipped one entry must apply no other.
func TestAnUnreadableEntryHalts(t *testing.T) {
	r := quietReplica()
	var halted error
	r.halt = func(err error) { halted = err }
	if _, ok := r.Apply(&raft.Log{Index: 7, Data: []byte("garbage")}).(error); !ok || halted == nil {
		t.Errorf("halted: %v", halted)
	}
	if _, ok := r.Apply(&raft.Log{Index: 8, Data: entryOf(1, fsm.Acquire{Owner: "amy", Locks: []string{"a"}})}).(error); !ok {
		t.Error("a later entry was applied")
	}
	if r.appliedIndex() != 0 || r.machine.Counts().Holds != 0 {
		t.Errorf("index %d, %+v", r.appliedIndex(), r.machine.Counts())
	}
}
