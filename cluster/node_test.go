package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// farm is a cluster of nodes over real sockets and real disks.
type farm struct {
	t     testing.TB
	confs []Config
	nodes []*Node
}

// newFarm starts servers that find each other by gossip, and ask no pidstatds unless
// they are configured to.
func newFarm(t testing.TB, servers int, configure ...func(*Config)) *farm {
	t.Helper()
	f := &farm{t: t}
	var join []string
	for i := range servers {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		gossip := freeUDP(t)
		join = append(join, gossip)
		f.confs = append(f.confs, Config{
			Name: fmt.Sprintf("n%d", i+1), Version: "test", DataDir: dir, BootstrapExpect: servers,
			Gossip: gossip, Processes: watchProcesses, PidstatPort: -1, Logger: testLogger(fmt.Sprintf("n%d", i+1)),
		})
	}
	for i := range f.confs {
		for _, change := range configure {
			change(&f.confs[i])
		}
		if servers > 1 {
			f.confs[i].Join = join
		}
		f.nodes = append(f.nodes, nil)
		f.start(i)
	}
	t.Cleanup(func() {
		for _, n := range f.nodes {
			if err := n.Close(context.Background()); err != nil {
				t.Errorf("close %s: %v", n.Name(), err)
			}
		}
	})
	return f
}

func (f *farm) start(i int) *Node {
	f.t.Helper()
	addr := "127.0.0.1:0"
	if f.nodes[i] != nil {
		addr = f.nodes[i].addr
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	conf := f.confs[i]
	conf.PeerListener = ln
	n, err := Open(context.Background(), conf)
	if err != nil {
		f.t.Fatal(err)
	}
	f.nodes[i] = n
	return n
}

// freeUDP finds a port that is free for memberlist, which wants the same one for
// UDP and TCP.
func freeUDP(t testing.TB) string {
	t.Helper()
	for range 100 {
		u, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := u.LocalAddr().String()
		l, err := net.Listen("tcp", addr)
		_ = u.Close()
		if err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return ""
}

func (f *farm) leader() *Node {
	f.t.Helper()
	return f.leaderOf(f.nodes)
}

// leaderOf waits for a leader among nodes.
func (f *farm) leaderOf(nodes []*Node) *Node {
	f.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		for _, n := range nodes {
			if n.office.Load() != nil {
				return n
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatal("no leader within 20 s")
	return nil
}

func TestOneNodeKeepsItsLocksOverARestart(t *testing.T) {
	f := newFarm(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	n := f.nodes[0]
	_, held, err := n.Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, func(fsm.Event) {})
	if err != nil || held.Code != fsm.Granted {
		t.Fatalf("%+v, %v", held, err)
	}
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
	n = f.start(0)
	res, err := n.Status(ctx, "amy", []string{"a"})
	if err != nil || res.Code != fsm.Granted || res.Fence != held.Fence {
		t.Fatalf("after the restart: %+v, %v; fence was %d", res, err, held.Fence)
	}
	if _, res, err = n.Acquire(ctx, fsm.Acquire{Owner: "bob", Locks: []string{"a"}}, func(fsm.Event) {}); err != nil || res.Code != fsm.Busy || res.Owner != "amy" {
		t.Fatalf("bob: %+v, %v", res, err)
	}
}

func TestThreeNodesFoundOneCluster(t *testing.T) {
	f := newFarm(t, 3)
	leader := f.leader()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, n := range f.nodes {
		_, res, err := n.Acquire(ctx, fsm.Acquire{Owner: n.Name(), Locks: []string{"lock-" + n.Name()}}, func(fsm.Event) {})
		if err != nil || res.Code != fsm.Granted {
			t.Fatalf("%s: %+v, %v", n.Name(), res, err)
		}
	}
	for _, n := range f.nodes {
		table, err := n.Table(ctx, false)
		if err != nil || len(table.Holds) != 3 {
			t.Fatalf("%s: %d holds, %v", n.Name(), len(table.Holds), err)
		}
		if c := n.clusterID(); c == "" || c != leader.clusterID() {
			t.Errorf("%s is of cluster %q, the leader of %q", n.Name(), c, leader.clusterID())
		}
	}
}

func TestForeignAndDamagedDataDirectories(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(dir string) error
		want    string
	}{
		{"somebody else's files", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "mail"), nil, 0o600)
		}, "is not a lockerd data directory"},
		{"damaged identity", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600)
		}, "is damaged"},
		{"newer identity", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, identityFile), []byte(`{"version":99,"id":"x"}`), 0o600)
		}, "upgrade this node"},
		{"older identity", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, identityFile), []byte(`{"version":1,"id":"x"}`), 0o600)
		}, "written by an older lockerd"},
		{"garbage for a log", func(dir string) error {
			return errors.Join(
				os.WriteFile(filepath.Join(dir, identityFile), []byte(`{"version":3,"id":"x"}`), 0o600),
				os.WriteFile(filepath.Join(dir, logFile), []byte(strings.Repeat("garbage ", 4096)), 0o600))
		}, "is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.prepare(dir); err != nil {
				t.Fatal(err)
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			n, err := Open(context.Background(), Config{Name: "n", DataDir: dir, PeerListener: ln, Logger: testLogger("n")})
			if err == nil {
				_ = n.Close(context.Background())
				t.Fatal("the node started")
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q: want one line with %q", err, tt.want)
			}
		})
	}
}

func TestADataDirectoryHasOneNode(t *testing.T) {
	f := newFarm(t, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), Config{Name: "n", DataDir: f.confs[0].DataDir, PeerListener: ln, Logger: testLogger("n")})
	if err == nil || !strings.Contains(err.Error(), "in use by another lockerd") {
		t.Fatalf("error %v", err)
	}
}

// TestDamagedLog cuts the log of a node short at many places, and overwrites many of
// its pages. The node either refuses with one line or starts; it never crashes.
func TestDamagedLog(t *testing.T) {
	f := newFarm(t, 1)
	f.leader()
	if err := f.nodes[0].Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.confs[0].DataDir, logFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var damaged [][]byte
	for size := len(whole) - 4096; size > 0; size -= 8192 {
		damaged = append(damaged, whole[:size])
	}
	for at := 0; at < min(len(whole), 16*4096); at += 4096 {
		b := slices.Clone(whole)
		copy(b[at:at+4096], bytes.Repeat([]byte{0xa5}, 4096))
		damaged = append(damaged, b)
	}
	refused := 0
	for i, b := range damaged {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, closeStores, err := openStores(f.confs[0].DataDir, "x", testLogger("x"))
		if err != nil {
			refused++
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("damage %d: error %q", i, err)
			}
			continue
		}
		_ = s
		if err := closeStores(); err != nil {
			t.Error(err)
		}
	}
	if refused < 3 {
		t.Errorf("%d of %d damages were noticed", refused, len(damaged))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf := f.confs[0]
	conf.PeerListener = ln
	if _, err := Open(context.Background(), conf); err == nil || !strings.Contains(err.Error(), "it is gone") {
		t.Errorf("without its log: %v", err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start(0) // sound again
}

// TestABadCommandStopsNobody proposes what the log's decoder would refuse: it must
// be refused before it is written, or every server would stop at it for good.
func TestABadCommandStopsNobody(t *testing.T) {
	f := newFarm(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	long := strings.Repeat("x", fsm.MaxName+1)
	many := make([]string, fsm.MaxLocks+1)
	for i := range many {
		many[i] = fmt.Sprint("l", i)
	}
	for _, c := range []fsm.Command{
		fsm.Release{Owner: "amy", Locks: []string{long}},
		fsm.Release{Owner: "amy", Locks: many},
		fsm.Break{Locks: []string{"a b"}, By: "amy"},
		fsm.Acquire{Owner: "amy"},
		fsm.Acquire{Owner: "amy", Locks: []string{"a", "a"}},
		fsm.Acquire{Owner: strings.Repeat("y", 100_000), Locks: []string{"a"}},
	} {
		res, err := f.nodes[0].Submit(ctx, c)
		if err != nil || res.Code != fsm.Refused || res.Reason == "" {
			t.Errorf("%.80v: %+v, %v", c, res, err)
		}
	}
	if _, res, err := f.nodes[0].Acquire(ctx, fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, func(fsm.Event) {}); err != nil || res.Code != fsm.Granted {
		t.Fatalf("afterwards: %+v, %v", res, err)
	}
	if err := f.nodes[0].Err(); err != nil {
		t.Fatal(err)
	}
}
