package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

func TestWhatMayBeMissingFromALog(t *testing.T) {
	for _, tt := range []struct {
		name     string
		log      [][2]uint64
		snapshot uint64
		want     string
	}{
		{"nothing yet", nil, 0, ""},
		{"a young log", [][2]uint64{{1, 9}}, 0, ""},
		{"its start is lost", [][2]uint64{{2, 9}}, 0, "entry 1 is missing"},
		{"its middle is lost", [][2]uint64{{1, 4}, {6, 9}}, 0, "entry 5 is missing"},
		{"cut after a snapshot", [][2]uint64{{50, 120}}, 100, ""},
		{"all of it cut", nil, 100, ""},
		{"cut to the snapshot", [][2]uint64{{101, 120}}, 100, ""},
		{"cut too far", [][2]uint64{{102, 120}}, 100, "entry 101 is missing"},
		{"a gap up to a snapshot that was sent", [][2]uint64{{1, 20}, {101, 120}}, 100, ""},
		{"a gap below a later snapshot", [][2]uint64{{1, 20}, {101, 220}}, 200, ""},
		{"a gap that goes on behind it", [][2]uint64{{1, 20}, {103, 120}}, 100, "entry 101 is missing"},
		{"a gap behind it", [][2]uint64{{1, 20}, {90, 110}, {112, 120}}, 100, "entry 111 is missing"},
		{"all below it", [][2]uint64{{1, 20}, {30, 40}}, 100, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s logSpans
			for _, run := range tt.log {
				for i := run[0]; i <= run[1]; i++ {
					if err := s.note(binary.BigEndian.AppendUint64(nil, i)); err != nil {
						t.Fatal(err)
					}
				}
			}
			err := s.whole(tt.snapshot)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	var s logSpans
	if err := errors.Join(s.note(binary.BigEndian.AppendUint64(nil, 7)), s.note(binary.BigEndian.AppendUint64(nil, 8))); err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{nil, {1}, binary.BigEndian.AppendUint64(nil, 8), binary.BigEndian.AppendUint64(nil, 3)} {
		if s.note(key) == nil {
			t.Errorf("key %x behind entry 8 was accepted", key)
		}
	}
}

// TestAServerThatWasSentASnapshotStartsAgain has a server miss more than the others'
// logs keep. Its own log has a gap then, unless it is dropped.
func TestAServerThatWasSentASnapshotStartsAgain(t *testing.T) {
	f := newFarm(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	locks := 0
	lock := func(n *Node) {
		t.Helper()
		locks++
		_, res, err := n.Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{fmt.Sprint("l", locks)}}, func(fsm.Event) {})
		if err != nil || res.Code != fsm.Granted {
			t.Fatalf("lock %d: %+v, %v", locks, res, err)
		}
	}
	leader := f.leader()
	for range 5 {
		lock(leader)
	}
	away := 0
	for f.nodes[away] == leader {
		away++
	}
	if err := f.nodes[away].Close(ctx); err != nil {
		t.Fatal(err)
	}
	before := f.nodes[away].raft.LastIndex()
	for range 5 {
		lock(leader)
	}
	for i, n := range f.nodes {
		if i == away {
			continue
		}
		if err := n.replica.waitFor(ctx, leader.replica.appliedIndex()); err != nil {
			t.Fatal(err)
		}
		conf := n.raft.ReloadableConfig()
		conf.TrailingLogs = 1
		if err := n.raft.ReloadConfig(conf); err != nil {
			t.Fatal(err)
		}
		if err := n.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	// The first start is sent the snapshot, the others have to live with it.
	for round := range 3 {
		n := f.start(away)
		lock(f.leader())
		if err := n.replica.waitFor(ctx, f.leader().replica.appliedIndex()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if table, err := n.Table(ctx, false); err != nil || len(table.Holds) != locks {
			t.Fatalf("round %d: %d of %d holds, %v", round, len(table.Holds), locks, err)
		}
		if err := n.Close(ctx); err != nil {
			t.Fatal(err)
		}
		spans, err := soundBolt(filepath.Join(f.confs[away].DataDir, logFile))
		if err != nil || len(spans) != 1 || spans[0].first <= before {
			t.Fatalf("round %d: the log holds %v, %v; it ended at %d when the server left", round, spans, err, before)
		}
	}
	f.start(away)
}

// gappedDir makes the stores of a server that was sent a snapshot up to entry 100 and
// kept its own entries up to 20.
func gappedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s, closeStores, err := openStores(dir, "x", testLogger("x"))
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 120; i++ {
		if i > 20 && i <= 100 {
			continue
		}
		if err := s.Log.StoreLog(&raft.Log{Index: i, Term: 1, Data: []byte("entry")}); err != nil {
			t.Fatal(err)
		}
	}
	sink, err := s.Snapshot.Create(1, 100, 1, raft.Configuration{}, 1, nil)
	if err == nil {
		_, err = sink.Write([]byte("table"))
	}
	if err = errors.Join(err, sink.Close(), closeStores()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestALogWithAGapBelowItsSnapshotIsSound(t *testing.T) {
	dir := gappedDir(t)
	_, closeStores, err := openStores(dir, "x", testLogger("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := closeStores(); err != nil {
		t.Fatal(err)
	}
	states, err := filepath.Glob(filepath.Join(dir, snapshotDir, "*", "state.bin"))
	if err != nil || len(states) != 1 {
		t.Fatal(states, err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want string) {
		t.Helper()
		_, closeStores, err := openStores(dir, "x", testLogger("x"))
		if err == nil {
			_ = closeStores()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want one line with %q", err, want)
		}
	}
	must(os.WriteFile(states[0], []byte("tablf"), 0o600))
	refused(snapshotDir + " is damaged (no snapshot is whole: ")
	must(os.RemoveAll(filepath.Dir(states[0])))
	refused("entry 21 is missing: there is no snapshot")
}

func TestFollowingLogDropsWhatASnapshotReplaced(t *testing.T) {
	mem := raft.NewInmemStore()
	cache, err := raft.NewLogCache(logCacheEntries, mem)
	if err != nil {
		t.Fatal(err)
	}
	log := followingLog{cache}
	store := func(from, to uint64) {
		t.Helper()
		var ls []*raft.Log
		for i := from; i <= to; i++ {
			ls = append(ls, &raft.Log{Index: i, Term: 1})
		}
		if err := log.StoreLogs(ls); err != nil {
			t.Fatal(err)
		}
	}
	store(1, 10)
	store(11, 12) // in order: nothing goes
	if first, _ := log.FirstIndex(); first != 1 {
		t.Fatalf("the log starts at %d", first)
	}
	store(101, 103)
	first, _ := log.FirstIndex()
	last, _ := log.LastIndex()
	if first != 101 || last != 103 {
		t.Errorf("the log holds %d to %d", first, last)
	}
	var l raft.Log
	if err := log.GetLog(12, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry 12 is still there: %+v, %v", l, err)
	}
	if err := log.GetLog(102, &l); err != nil || l.Index != 102 {
		t.Errorf("entry 102: %+v, %v", l, err)
	}
}
