package cluster

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRemoveByNameAfterARestart stops all servers and starts two of three again: the one
// that stays away is still known by its name.
func TestRemoveByNameAfterARestart(t *testing.T) {
	f := newFarm(t, 3)
	f.leader()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	away := f.nodes[2]
	for _, n := range f.nodes {
		for names := map[string]string(nil); len(names) < 3; time.Sleep(5 * time.Millisecond) {
			var err error
			names, err = loadNames(n.cfg.DataDir)
			must(t, err)
			must(t, ctx.Err())
		}
	}
	for _, n := range f.nodes {
		must(t, n.Close(ctx))
	}
	f.start(0)
	f.start(1)
	f.leaderOf(f.nodes[:2])
	gone, err := f.nodes[0].Remove(ctx, "n3", true)
	if err != nil || gone.ID != away.id || gone.Name != "n3" {
		t.Errorf("removed %+v, %v; want %s", gone, err, away.id)
	}
}

// TestNamesThatCannotBeRead lets a server start all the same.
func TestNamesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"", "{", "[]", `{"a":1}`} {
		must(t, os.WriteFile(filepath.Join(dir, namesFile), []byte(text), 0o600))
		if names, err := loadNames(dir); err == nil {
			t.Errorf("%q: %v", text, names)
		}
	}
	must(t, saveNames(dir, map[string]string{"a": "n1"}))
	if names, err := loadNames(dir); err != nil || names["a"] != "n1" {
		t.Errorf("%v, %v", names, err)
	}
}
