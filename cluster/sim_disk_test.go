package cluster

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// simSnapshots keeps the last whole snapshot in memory. Unlike Raft's own it shows
// nothing of one that was never finished, as a disk does after a crash.
type simSnapshots struct {
	mu   sync.Mutex
	meta *raft.SnapshotMeta
	data []byte
}

type simSink struct {
	store *simSnapshots
	meta  raft.SnapshotMeta
	buf   bytes.Buffer
}

func newSimStores(id string) *Stores {
	mem := raft.NewInmemStore()
	return &Stores{ID: id, Log: mem, Stable: mem, Snapshot: &simSnapshots{}}
}

func (s *simSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &simSink{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: c, ConfigurationIndex: at,
	}}, nil
}

func (s *simSnapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil {
		return nil, nil
	}
	meta := *s.meta
	return []*raft.SnapshotMeta{&meta}, nil
}

func (s *simSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil || s.meta.ID != id {
		return nil, nil, fmt.Errorf("no snapshot %s", id)
	}
	meta := *s.meta
	return &meta, io.NopCloser(bytes.NewReader(s.data)), nil
}

func (k *simSink) Write(b []byte) (int, error) { return k.buf.Write(b) }
func (k *simSink) ID() string                  { return k.meta.ID }
func (k *simSink) Cancel() error               { return nil }

func (k *simSink) Close() error {
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	k.meta.Size = int64(k.buf.Len())
	k.store.meta, k.store.data = &k.meta, k.buf.Bytes()
	return nil
}
