package cluster

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// A snapshot is read back as it was written, and not at all when any bit of it, or of what
// is noted beside it, is another one. What nobody goes by may change.
func TestSnapshotsAreChecked(t *testing.T) {
	dir := t.TempDir()
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, 3, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	s := &checkedSnapshots{files, filepath.Join(dir, snapshotDir)}
	servers := raft.Configuration{Servers: []raft.Server{{ID: "a1", Address: "10.0.0.1:1753"}, {Suffrage: raft.Nonvoter, ID: "b2", Address: "10.0.0.2:1753"}}}
	_, trans := raft.NewInmemTransport("")
	sink, err := s.Create(1, 1205, 7, servers, 1100, trans)
	if err != nil {
		t.Fatal(err)
	}
	const table = "the table"
	if _, err := sink.Write([]byte(table)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	// first is what Raft would start from.
	first := func() (*raft.SnapshotMeta, string, error) {
		all, err := s.List()
		if err != nil {
			return nil, "", err
		}
		for _, m := range all {
			if meta, r, err := s.Open(m.ID); err == nil {
				b, err := io.ReadAll(r)
				_ = r.Close()
				if meta.Size != int64(len(b)) {
					t.Errorf("%d bytes, and the size is %d", len(b), meta.Size)
				}
				return m, string(b), err
			}
		}
		return nil, "", nil
	}
	whole, text, err := first()
	if err != nil || whole == nil || text != table {
		t.Fatalf("%+v, %q, %v", whole, text, err)
	}
	for _, name := range []string{metaFile, stateFile} {
		path := filepath.Join(dir, snapshotDir, whole.ID, name)
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		taken := 0
		for i := 0; i < len(sound)*8; i += 5 { // every byte has one, and sooner or later each bit
			bad := bytes.Clone(sound)
			bad[i/8] ^= 1 << (i % 8)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			m, text, err := first()
			if err != nil {
				t.Fatal(err)
			}
			if m == nil {
				continue
			}
			taken++
			same := m.Index == whole.Index && m.Term == whole.Term && m.ConfigurationIndex == whole.ConfigurationIndex && text == table &&
				m.Version == whole.Version && len(m.Configuration.Servers) == 2 && m.Configuration.Servers[0] == servers.Servers[0] && m.Configuration.Servers[1] == servers.Servers[1]
			if !same {
				t.Errorf("bit %d of %s: %+v, %q", i, name, m, text)
			}
		}
		if name == stateFile && taken > 0 || taken > len(sound)*8/5/2 {
			t.Errorf("%s: %d flipped bits were taken", name, taken)
		}
		// Cut off anywhere it is refused.
		for n := 0; n < len(sound); n += 3 {
			if err := os.WriteFile(path, sound[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			if m, _, err := first(); m != nil || err != nil {
				if name == metaFile && strings.TrimSpace(string(sound[n:])) == "" {
					continue
				}
				t.Errorf("%d bytes of %s: %+v, %v", n, name, m, err)
			}
		}
		if err := os.WriteFile(path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
