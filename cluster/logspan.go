package cluster

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"
)

// logSpans are the entries that a log holds: runs of indexes, from low to high.
//
// Raft never leaves a gap between what a snapshot covers and the end of the log. But
// below the index of its newest snapshot the log may hold anything or nothing: a
// server that is sent a snapshot keeps its older entries, and goes on behind the
// snapshot (raft, compactLogs), unless followingLog has dropped them.
type logSpans []logSpan

type logSpan struct{ first, last uint64 }

// note adds the next key of the log's bucket.
func (s *logSpans) note(key []byte) error {
	if len(key) != 8 {
		return fmt.Errorf("a key of %d bytes in the log", len(key))
	}
	index := binary.BigEndian.Uint64(key)
	n := len(*s)
	switch {
	case index == 0 || n > 0 && index <= (*s)[n-1].last:
		return fmt.Errorf("entry %d is out of order", index)
	case n > 0 && index == (*s)[n-1].last+1:
		(*s)[n-1].last = index
	default:
		*s = append(*s, logSpan{index, index})
	}
	return nil
}

// whole reports the first entry that is missing above the index of the snapshot that
// Raft starts from; 0 stands for none, so everything has to be in the log.
func (s logSpans) whole(snapshot uint64) error {
	next := snapshot + 1
	covered := "there is no snapshot"
	if snapshot > 0 {
		covered = fmt.Sprintf("the snapshot ends with %d", snapshot)
	}
	for _, span := range s {
		switch {
		case span.last < next:
		case span.first > next:
			return fmt.Errorf("entry %d is missing: %s, and the log goes on with %d", next, covered, span.first)
		default:
			next = span.last + 1
		}
	}
	return nil
}

// readable reads every entry, as Raft will: damage that it finds is a crash of a
// goroutine that nobody can guard.
func (s logSpans) readable(log raft.LogStore) error {
	var l raft.Log
	for _, span := range s {
		for i := span.first; i <= span.last; i++ {
			if err := log.GetLog(i, &l); err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
		}
	}
	return nil
}

// startIndex is the index of the snapshot that Raft will start from: the newest that
// is whole. It is 0 where there has not been any. spoiled says what is wrong with a newer
// one: then the log may well lack what that one held.
func startIndex(snaps raft.SnapshotStore) (index uint64, spoiled, err error) {
	all, err := snaps.List()
	if err != nil {
		return 0, nil, err
	}
	// Newest first is how Raft tries them; its order is by term, then index.
	for _, listed := range all {
		meta, r, err := snaps.Open(listed.ID)
		if err == nil {
			return meta.Index, spoiled, r.Close()
		}
		if spoiled == nil {
			spoiled = fmt.Errorf("%s: %w", listed.ID, err)
		}
	}
	if len(all) > 0 {
		return 0, nil, fmt.Errorf("no snapshot is whole: %w", spoiled)
	}
	return 0, nil, nil
}

// followingLog is a log that never holds a gap. When the entry behind a snapshot that
// another server has sent is added to entries from long before it, those go: they
// may be ones that were never agreed upon, and this server might, as a leader, send
// them to one that is still there.
type followingLog struct{ *raft.LogCache }

// StoreLog implements raft.LogStore.
func (f followingLog) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (f followingLog) StoreLogs(ls []*raft.Log) error {
	if len(ls) == 0 {
		return nil
	}
	last, err := f.LastIndex()
	if err != nil {
		return fmt.Errorf("find the end of the log: %w", err)
	}
	if last != 0 && ls[0].Index > last+1 {
		first, err := f.FirstIndex()
		if err != nil {
			return fmt.Errorf("find the start of the log: %w", err)
		}
		if err := f.DeleteRange(first, last); err != nil {
			return fmt.Errorf("drop what a snapshot has replaced: %w", err)
		}
	}
	return f.LogCache.StoreLogs(ls)
}
