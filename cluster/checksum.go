package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bolterrors "go.etcd.io/bbolt/errors"
)

// sumSize is the size of a checksum: CRC-32C, which processors compute, and which
// finds every change of up to 32 bits in a row.
const sumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkedStore is a log and stable store whose every value carries a checksum. bbolt
// has none of its own, and a flipped bit in an entry would give this server another
// table than the others have; one in a term or a vote could give a term two leaders.
//
// An entry's checksum is the end of its stored extensions, that of any other value the
// end of the value. All of them have one: directories from before are refused by the
// version of their identity, so that no damage can pass for an old format.
type checkedStore struct {
	bolt *raftboltdb.BoltStore
	path string
}

// entrySum covers all of an entry, so one under the wrong index is noticed as well.
func entrySum(l *raft.Log, extensions []byte) uint32 {
	var head [37]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(l.AppendedAt.Unix()))
	binary.BigEndian.PutUint32(head[25:], uint32(l.AppendedAt.Nanosecond()))
	binary.BigEndian.PutUint64(head[29:], uint64(len(l.Data)))
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, l.Data)
	return crc32.Update(sum, castagnoli, extensions)
}

// StoreLog implements raft.LogStore.
func (c *checkedStore) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (c *checkedStore) StoreLogs(ls []*raft.Log) error {
	// Copies: Raft is sending the same entries to the others meanwhile.
	copies := make([]raft.Log, len(ls))
	sealed := make([]*raft.Log, len(ls))
	for i, l := range ls {
		copies[i] = *l
		ext := make([]byte, 0, len(l.Extensions)+sumSize)
		ext = append(ext, l.Extensions...)
		copies[i].Extensions = binary.BigEndian.AppendUint32(ext, entrySum(l, l.Extensions))
		sealed[i] = &copies[i]
	}
	return c.bolt.StoreLogs(sealed)
}

// GetLog implements raft.LogStore.
func (c *checkedStore) GetLog(index uint64, l *raft.Log) error {
	// The decoder leaves alone what a damaged entry does not name.
	*l = raft.Log{}
	err := c.bolt.GetLog(index, l)
	switch {
	case errors.Is(err, raft.ErrLogNotFound), errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return err
	case err != nil:
		return c.damaged(index, fmt.Errorf("it cannot be decoded: %w", err))
	}
	n := len(l.Extensions) - sumSize
	switch {
	case n < 0:
		return c.damaged(index, errors.New("it has no checksum"))
	case entrySum(l, l.Extensions[:n]) != binary.BigEndian.Uint32(l.Extensions[n:]):
		return c.damaged(index, errors.New("its checksum is wrong"))
	case l.Index != index:
		return c.damaged(index, fmt.Errorf("it is entry %d", l.Index))
	}
	l.Extensions = l.Extensions[:n:n]
	if n == 0 {
		l.Extensions = nil // as it came
	}
	return nil
}

func (c *checkedStore) damaged(index uint64, err error) error {
	return damagedLog(c.path, fmt.Errorf("entry %d: %w", index, err))
}

// FirstIndex implements raft.LogStore.
func (c *checkedStore) FirstIndex() (uint64, error) { return c.bolt.FirstIndex() }

// LastIndex implements raft.LogStore.
func (c *checkedStore) LastIndex() (uint64, error) { return c.bolt.LastIndex() }

// DeleteRange implements raft.LogStore.
func (c *checkedStore) DeleteRange(from, to uint64) error { return c.bolt.DeleteRange(from, to) }

// valueSum covers the key as well: a vote must not pass for a term.
func valueSum(key, val []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, val)
}

// Set implements raft.StableStore.
func (c *checkedStore) Set(key, val []byte) error {
	sealed := append(make([]byte, 0, len(val)+sumSize), val...)
	return c.bolt.Set(key, binary.BigEndian.AppendUint32(sealed, valueSum(key, val)))
}

// Get implements raft.StableStore.
func (c *checkedStore) Get(key []byte) ([]byte, error) {
	b, err := c.bolt.Get(key)
	if err != nil {
		return nil, err
	}
	n := len(b) - sumSize
	if n < 0 || valueSum(key, b[:n]) != binary.BigEndian.Uint32(b[n:]) {
		return nil, damagedLog(c.path, fmt.Errorf("the checksum of %s is wrong", key))
	}
	return b[:n], nil
}

// SetUint64 implements raft.StableStore.
func (c *checkedStore) SetUint64(key []byte, val uint64) error {
	return c.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// GetUint64 implements raft.StableStore.
func (c *checkedStore) GetUint64(key []byte) (uint64, error) {
	b, err := c.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, damagedLog(c.path, fmt.Errorf("%s has %d bytes", key, len(b)))
	}
	return binary.BigEndian.Uint64(b), nil
}

// stableKeys are what Raft keeps besides its log. It takes a missing one for a zero,
// so one whose name is damaged must not be overlooked.
var stableKeys = []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"}

// stableSound reads all that Raft keeps besides its log.
func (c *checkedStore) stableSound() error {
	for _, key := range stableKeys {
		if _, err := c.Get([]byte(key)); err != nil && !notFound(err) {
			return err
		}
	}
	return nil
}

// damage is the error of a log that cannot be trusted any more.
type damage struct {
	path string
	err  error
}

func damagedLog(path string, err error) error {
	if known := (*damage)(nil); errors.As(err, &known) {
		return known // it has said so itself
	}
	return &damage{path, err}
}

// Error implements error.
func (d *damage) Error() string {
	return fmt.Sprintf("%s is damaged (%v): in a cluster, move the data directory away and let the node join as a new one; a single node needs a backup", d.path, d.err)
}

// Unwrap gives what is wrong with the log.
func (d *damage) Unwrap() error { return d.err }
