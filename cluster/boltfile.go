package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// The head of a bbolt file: two pages, each with a header of 16 bytes and a meta
// record, of which the valid one with the later transaction counts (bbolt,
// internal/common/meta.go).
const (
	boltMagic      = 0xED0CDAED
	boltPageHeader = 16
	boltMetaSize   = 64
	boltMaxPage    = 64 << 10
)

// The buckets of raft-boltdb: the log, index to entry, and what Raft keeps besides.
const (
	boltLogs   = "logs"
	boltStable = "conf"
)

// boltWait is how long a file that somebody else has open is waited for.
const boltWait = time.Second

// soundBolt reads a bbolt file from end to end, and says which log entries it holds.
// bbolt does so itself when it opens the file for writing, but on a goroutine of its
// own, where damage is a panic that nobody can catch; here the caller can.
func soundBolt(path string) (logSpans, error) {
	if err := wholeBolt(path); err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return nil, nil // it is about to be made
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: boltWait})
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	var spans logSpans
	buckets := 0
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			buckets++
			switch string(name) {
			case boltLogs:
				return b.ForEach(func(key, _ []byte) error { return spans.note(key) })
			case boltStable:
				return b.ForEach(func(key, _ []byte) error {
					if !slices.Contains(stableKeys, string(key)) {
						return fmt.Errorf("a key %q that Raft knows nothing of", key)
					}
					return nil
				})
			}
			return fmt.Errorf("a bucket %q that is none of Raft's", name)
		})
	})
	if err == nil && buckets == 1 {
		err = errors.New("one of Raft's two buckets is gone") // they are made at once
	}
	return spans, err
}

// wholeBolt checks that a bbolt file is as long as it says it is. bbolt maps the
// file and reads on goroutines of its own, where what lies beyond the end is a fault
// that nobody can catch. A file that does not exist, or is empty, is a new one.
func wholeBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return nil
	}
	head := make([]byte, 2*boltMaxPage)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	var pages, last uint64
	pageSize := int64(os.Getpagesize())
	for _, at := range []int{boltPageHeader, int(pageSize) + boltPageHeader} {
		if len(head) < at+boltMetaSize {
			continue
		}
		meta := head[at : at+boltMetaSize]
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:boltMetaSize-8])
		if binary.NativeEndian.Uint32(meta) != boltMagic || binary.NativeEndian.Uint64(meta[boltMetaSize-8:]) != sum.Sum64() {
			continue
		}
		pageSize = int64(binary.NativeEndian.Uint32(meta[8:]))
		if txid := binary.NativeEndian.Uint64(meta[48:]); txid >= last {
			last, pages = txid, binary.NativeEndian.Uint64(meta[40:])
		}
	}
	switch {
	case pages == 0:
		return errors.New("it is no log")
	case info.Size() < int64(pages)*pageSize:
		return fmt.Errorf("it is cut off: %d bytes of %d", info.Size(), int64(pages)*pageSize)
	}
	return nil
}
