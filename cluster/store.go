package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	identityFile    = "node.json"
	agentFile       = "agent.json"
	logFile         = "raft.db"
	snapshotDir     = "snapshots" // the name is Raft's
	identityVersion = 3           // 1 was before the log had checksums, 2 before snapshots had

	snapshotsRetained = 3
	logCacheEntries   = 512
)

// identity is what makes a data directory one node's: its Raft id, made once,
// and the cluster it belongs to, empty until it belongs to one. Machine and Boot are
// where the node last ran, Past what ran there before; see boots.
type identity struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Cluster string `json:"cluster"`

	Machine string   `json:"machine,omitempty"`
	Boot    string   `json:"boot,omitempty"`
	Past    []string `json:"past_boots,omitempty"`

	Removed bool `json:"removed,omitempty"` // from the cluster: this data is of no more use

	path string
}

// newID makes an id for a node or a cluster: 128 random bits in hex.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return hex.EncodeToString(b[:])
}

// openIdentity reads the identity of the node in dir, and makes dir and identity
// where there is nothing yet. A directory that holds something else is refused.
func openIdentity(dir string) (*identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w (give another with --data-dir)", err)
	}
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := refuseForeign(dir); err != nil {
			return nil, err
		}
		id := &identity{Version: identityVersion, ID: newID(), path: path}
		return id, id.save()
	}
	if err != nil {
		return nil, fmt.Errorf("read node identity: %w", err)
	}
	id := &identity{path: path}
	if err := json.Unmarshal(b, id); err != nil || id.ID == "" {
		return nil, fmt.Errorf("%s is damaged: restore it from a backup, or move %s away and let the node join as a new one", path, dir)
	}
	if id.Version > identityVersion {
		return nil, fmt.Errorf("%s was written by a newer lockerd (format %d, this one knows %d): upgrade this node", path, id.Version, identityVersion)
	}
	if id.Version < identityVersion {
		return nil, fmt.Errorf("%s was written by an older lockerd, without the checksums of today (format %d, this one needs %d): move %s away and let the node join as a new one", path, id.Version, identityVersion, dir)
	}
	if id.Removed {
		return nil, removedFrom(dir)
	}
	return id, nil
}

// agentIdentity makes an agent's identity, with what it can find in dir of where it
// has run before. Without a directory that it can write to, the agent serves as well,
// but what a reboot of its machine ends is not known then.
func agentIdentity(dir string, log hclog.Logger) *identity {
	id := &identity{Version: identityVersion, ID: newID()}
	if dir == "" {
		return id
	}
	path := filepath.Join(dir, agentFile)
	var before identity
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var b []byte
		b, err = os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = nil
		case err == nil:
			err = json.Unmarshal(b, &before)
		}
	}
	if err == nil {
		id.Machine, id.Boot, id.Past = before.Machine, before.Boot, before.Past
		id.path = path
		err = id.save()
	}
	if err != nil {
		log.Warn("cannot remember this boot: after a reboot nobody will know that the processes of now are gone; give a directory of its own with --data-dir", "error", err)
		id.path = ""
	}
	return id
}

// refuseForeign tells a data directory that is not ours from an empty one. A
// file system's own lost+found does not count.
func refuseForeign(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("%s is not a lockerd data directory (it holds %s but no %s): give an empty or a new one with --data-dir", dir, e.Name(), identityFile)
		}
	}
	return nil
}

// save writes the identity so that a crash leaves the old one or the new one.
func (id *identity) save() error {
	if id.path == "" {
		return nil // an agent's that has no directory
	}
	b, err := json.MarshalIndent(id, "", "\t")
	if err != nil {
		return fmt.Errorf("encode node identity: %w", err)
	}
	if err := writeFileSync(id.path, append(b, '\n')); err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	return nil
}

// writeFileSync replaces path by a file with the given content, durably and at once.
func writeFileSync(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openStores opens Raft's log, stable and snapshot stores in dir. The returned
// function closes what must be closed.
func openStores(dir, id string, log hclog.Logger) (s *Stores, closeStores func() error, err error) {
	// bbolt trusts its file: a damaged one shows as a panic or a fault. Both become
	// the error they are.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	path := filepath.Join(dir, logFile)
	defer func() {
		if p := recover(); p != nil {
			err = damagedLog(path, fmt.Errorf("%v", p))
		}
	}()
	spans, err := soundBolt(path)
	if err != nil {
		return nil, nil, unopened(path, err)
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		// A free list that is not written saves a page per commit, and the map
		// form keeps its cost flat on old, large files.
		BoltOptions: &bbolt.Options{
			Timeout:        boltWait,
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, nil, unopened(path, err)
	}
	checked := &checkedStore{bolt, path}
	if err := errors.Join(spans.readable(checked), checked.stableSound()); err != nil {
		return nil, nil, errors.Join(damagedLog(path, err), bolt.Close())
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsRetained, log.Named("snapshot"))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open snapshots: %w", err), bolt.Close())
	}
	snaps := &checkedSnapshots{files, filepath.Join(dir, snapshotDir)}
	start, spoiled, err := startIndex(snaps)
	if err != nil {
		return nil, nil, errors.Join(damagedLog(filepath.Join(dir, snapshotDir), err), bolt.Close())
	}
	if err := spans.whole(start); err != nil {
		if spoiled != nil {
			return nil, nil, errors.Join(damagedLog(filepath.Join(dir, snapshotDir), spoiled), bolt.Close())
		}
		return nil, nil, errors.Join(damagedLog(path, err), bolt.Close())
	}
	return &Stores{Log: checked, Stable: checked, Snapshot: snaps, ID: id}, bolt.Close, nil
}

// unopened says why the log at path cannot be opened.
func unopened(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%s is in use by another lockerd: stop that one, or give another --data-dir", filepath.Dir(path))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open log: %w (give a --data-dir this user can write)", err)
	}
	return damagedLog(path, err)
}
