package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// checkedSnapshots are snapshots whose every note carries a checksum. Raft has one of the
// table, and none of what it notes beside it: the index and term at which the table was
// taken, and who the servers were. A flipped bit in the index would have a server skip
// entries, or carry some out twice, and go on with another table than the others have;
// one in an id would cut a server off.
//
// The checksum is the beginning of the stored table. What is sent to other servers does
// not have it: they note, and check, for themselves.
type checkedSnapshots struct {
	*raft.FileSnapshotStore
	dir string // a directory for each snapshot is in it
}

// Files of a snapshot; the names are Raft's.
const (
	stateFile = "state.bin"
	metaFile  = "meta.json"
)

// noteSum covers all that Raft goes by of what is noted beside a table.
func noteSum(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration, serversIndex uint64) uint32 {
	var b []byte
	for _, n := range []uint64{uint64(version), index, term, serversIndex, uint64(len(servers.Servers))} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, s := range servers.Servers {
		b = binary.BigEndian.AppendUint64(b, uint64(s.Suffrage))
		for _, text := range []string{string(s.ID), string(s.Address)} {
			b = binary.BigEndian.AppendUint64(b, uint64(len(text)))
			b = append(b, text...)
		}
	}
	return crc32.Checksum(b, castagnoli)
}

// Create implements raft.SnapshotStore.
func (c *checkedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration, serversIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := c.FileSnapshotStore.Create(version, index, term, servers, serversIndex, trans)
	if err != nil {
		return nil, err
	}
	sum := binary.BigEndian.AppendUint32(nil, noteSum(version, index, term, servers, serversIndex))
	if _, err := sink.Write(sum); err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return sink, nil
}

// List implements raft.SnapshotStore. It leaves out what bears the name of another
// snapshot, whose table Raft would take for this one's.
func (c *checkedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := c.FileSnapshotStore.List()
	return slices.DeleteFunc(all, func(m *raft.SnapshotMeta) bool {
		return !strings.HasPrefix(m.ID, fmt.Sprintf("%d-%d-", m.Term, m.Index))
	}), err
}

// Open implements raft.SnapshotStore.
func (c *checkedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := c.FileSnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	var sum [sumSize]byte
	state, err := os.Stat(filepath.Join(c.dir, id, stateFile))
	if err == nil {
		_, err = io.ReadFull(r, sum[:])
	}
	if err == nil && (state.Size() != meta.Size ||
		binary.BigEndian.Uint32(sum[:]) != noteSum(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex)) {
		err = errors.New("the checksum is wrong")
	}
	if err != nil {
		return nil, nil, errors.Join(damagedLog(filepath.Join(c.dir, id, metaFile), err), r.Close())
	}
	stripped := *meta
	stripped.Size -= sumSize
	return &stripped, r, nil
}
