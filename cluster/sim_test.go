package cluster

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport/pipenet"
)

// sim is a cluster of real nodes over an in-memory network, inside a bubble of
// simulated time.
type sim struct {
	t     *testing.T
	net   *pipenet.Net
	peers []Server
	nodes map[string]*Node
	disks map[string]*Stores
	at    map[string]string // address of a server's host, if that is not its id

	configure func(*Config) // of every node that is started
}

func newSim(t *testing.T, servers int) *sim {
	s := &sim{t: t, net: pipenet.New(), nodes: make(map[string]*Node), disks: make(map[string]*Stores), configure: func(*Config) {}}
	s.grow(servers)
	return s
}

// grow founds the cluster with a number of servers.
func (s *sim) grow(servers int) {
	for i := range servers {
		id := fmt.Sprintf("n%d", i+1)
		s.peers = append(s.peers, Server{ID: id, Addr: id + ":1"})
		mem := raft.NewInmemStore()
		s.disks[id] = &Stores{ID: id, Log: mem, Stable: mem, Snapshot: raft.NewInmemSnapshotStore()}
	}
	for _, p := range s.peers {
		s.start(p.ID)
	}
}

// addr is that of a node's peer port.
func (s *sim) addr(id string) string {
	if a := s.at[id]; a != "" {
		return a
	}
	return id + ":1"
}

func (s *sim) start(id string) *Node {
	s.t.Helper()
	ln, err := s.net.Listen(s.addr(id))
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := Config{
		Name: id, Version: "test", PeerListener: ln, Dial: s.net.Dialer(s.addr(id)),
		Servers: s.peers, Stores: s.disks[id], BootstrapExpect: len(s.peers), PidstatPort: -1, Logger: testLogger(id),
	}
	s.configure(&cfg)
	n, err := Open(context.Background(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.nodes[id] = n
	return n
}

func (s *sim) close() {
	for _, n := range s.nodes {
		if err := n.Close(context.Background()); err != nil {
			s.t.Errorf("close %s: %v", n.Name(), err)
		}
	}
}

// leader waits until some node is in office and returns it.
func (s *sim) leader() *Node {
	for range 10_000 {
		for _, n := range s.nodes {
			if n.office.Load() != nil {
				return n
			}
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatal("no leader within 10 s")
	return nil
}

func testLogger(name string) hclog.Logger {
	level := hclog.Off
	if os.Getenv("LOCKERD_TEST_LOG") != "" {
		level = hclog.Debug
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, Output: os.Stderr})
}

func TestSimulatedClusterLocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		s.leader()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		var fence fsm.Fence
		for _, n := range s.nodes {
			_, res, err := n.Acquire(ctx, fsm.Acquire{Owner: n.Name(), Locks: []string{"a"}}, func(fsm.Event) {})
			if err != nil || res.Code != fsm.Granted || res.Fence <= fence {
				t.Fatalf("%s: %+v, %v", n.Name(), res, err)
			}
			fence = res.Fence
			if res, err = n.Submit(ctx, fsm.Release{Owner: n.Name(), Locks: []string{"a"}}); err != nil || res.Code != fsm.Done {
				t.Fatalf("%s: %+v, %v", n.Name(), res, err)
			}
			if res, err = n.Status(ctx, n.Name(), []string{"a"}); err != nil || res.Code != fsm.Done {
				t.Fatalf("%s: %+v, %v", n.Name(), res, err)
			}
		}
	})
}
