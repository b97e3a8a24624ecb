package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/pidprobe"
)

// Config is what a node needs to know. The zero value of a field with a default
// stands for the default.
type Config struct {
	// Name is what people call the node: in status, logs and the client protocol.
	// It must be unique in the cluster. Default: the host's name.
	Name string

	// Version is the program's version, told to clients and peers.
	Version string

	// DataDir holds the identity, log and snapshots of a server. It is made if it
	// does not exist, and belongs to one node at a time. An agent keeps nothing.
	DataDir string

	// Agent makes a node without Raft, which serves clients through the servers.
	Agent bool

	// BootstrapExpect is the number of servers that form a new cluster. With 1,
	// the default, an empty node founds a cluster of its own at once; with more it
	// waits until that many servers with the same number have found one another.
	// A node that belongs to a cluster already ignores it.
	BootstrapExpect int

	// Join lists gossip addresses (host:port) of other nodes. One that answers is
	// enough.
	Join []string

	// Advertise is the host name or address under which other nodes reach this
	// one's peer and gossip ports. Default: the address of the peer listener.
	Advertise string

	// PeerListener accepts Raft and forwarding traffic of other nodes. Required
	// for servers.
	PeerListener net.Listener

	// Dial reaches other nodes' peer ports. Default: TCP with keepalive.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Gossip is the address (host:port) for memberlist, UDP and TCP; empty means
	// no gossip, and then Servers must name the cluster.
	Gossip string

	// Servers is the fixed set of voters for a cluster without gossip, this node
	// included. Simulations use it.
	Servers []Server

	// Stores overrides the log, stable and snapshot stores of DataDir. Simulations use it.
	Stores *Stores

	// Clients are listeners for the client protocol. The node closes them.
	Clients []net.Listener

	// MaxClients bounds client connections; further ones are told so and closed.
	// Default 200,000, or what the limit on open files leaves, if that is less.
	MaxClients int

	// ClientIdle ends a client connection that has sent no whole request for this
	// long while nothing is owed to it. Default 5 min. Lower frees descriptors of
	// forgotten connections sooner, and cuts slow typists off.
	ClientIdle time.Duration

	// HeartbeatTimeout is how long a follower goes without word from the leader
	// before it stands for election. Default 1 s. Below 500 ms a busy machine
	// elects for ever; a crashed leader's process is noticed in milliseconds anyway.
	HeartbeatTimeout time.Duration

	// NodeGrace is how long the waits of clients that came in by a node survive
	// it, so that they can come back by another node and keep their places. Default 10 s.
	NodeGrace time.Duration

	// NoLeaderGrace is how long a request waits for a leader before it fails with
	// [ErrNoLeader]. It must be longer than an election. Default 10 s.
	NoLeaderGrace time.Duration

	// SnapshotBytes is the amount of log after which a snapshot is taken. Default
	// 64 MiB. More means a longer start, less more writing.
	SnapshotBytes int

	// MinFreeBytes is the free space of the data directory's file system under
	// which the node hands leadership over and takes no new holds. Default 64 MiB.
	MinFreeBytes int64

	// Host is the fully qualified name of this host, as clients here give it for
	// their processes. Default: the kernel's name of the host.
	Host string

	// Processes starts to wait for processes of this host; it reports deaths to
	// dead, and to warn when it can't do as well as it should. Nil: this node
	// watches none, and holds of this host do not end with their processes.
	Processes func(dead func(pidprobe.Process), warn func(error)) (Processes, error)

	// PidstatPort is the UDP port of the pidstatds that the leader asks for processes
	// of hosts without a node, at most 100 times a second in all. Default 1752.
	// Negative: none are asked, and what such processes hold when they die has to be
	// broken by hand.
	PidstatPort int

	// Remote opens the way to the pidstatds. Nil: UDP. Tests and simulations use it.
	Remote func() (Remote, error)

	// Executor carries out orders on this host. Nil: orders that name this node fail
	// with a line that says so. The node closes it.
	Executor Executor

	// OrderGrace is how long this host may stay frozen for orders while the node is out
	// of touch with the leader; then it is thawed. Default 2 s. Shorter than an election
	// and every election thaws; longer and a cluster that fell apart stays frozen for longer.
	OrderGrace time.Duration

	machine *machine          // where the node runs; tests set it
	nearby  func() []gossiped // the servers that are there; simulations set it, which have no gossip

	// Logger is required.
	Logger hclog.Logger
}

// Server names a voter of a fixed cluster.
type Server struct {
	ID   string
	Addr string // of its peer port
}

// Stores are the places where Raft keeps its state.
type Stores struct {
	Log      raft.LogStore
	Stable   raft.StableStore
	Snapshot raft.SnapshotStore
	ID       string // the node's Raft id
}

const (
	minHeartbeat = 500 * time.Millisecond
	minGrace     = 500 * time.Millisecond
	maxExpect    = 9
)

// withDefaults fills in what is not set and checks what is.
func (c Config) withDefaults() (Config, error) {
	if c.Logger == nil {
		return c, errors.New("config: no logger")
	}
	if c.Name == "" {
		return c, errors.New("config: the node has no name: give one with --name")
	}
	if c.BootstrapExpect == 0 {
		c.BootstrapExpect = 1
	}
	if c.MaxClients == 0 {
		c.MaxClients = 200_000
	}
	if c.ClientIdle == 0 {
		c.ClientIdle = 5 * time.Minute
	}
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = time.Second
	}
	if c.NodeGrace == 0 {
		c.NodeGrace = 10 * time.Second
	}
	if c.NoLeaderGrace == 0 {
		c.NoLeaderGrace = 10 * time.Second
	}
	if c.OrderGrace == 0 {
		c.OrderGrace = 2 * time.Second
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 64 << 20
	}
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = 64 << 20
	}
	if c.PidstatPort == 0 {
		c.PidstatPort = pidprobe.DefaultPort
	}
	switch {
	case c.PidstatPort > math.MaxUint16:
		return c, fmt.Errorf("config: pidstat port %d: ports go up to %d", c.PidstatPort, math.MaxUint16)
	case c.BootstrapExpect < 0 || c.BootstrapExpect > maxExpect:
		return c, fmt.Errorf("config: %d servers expected: a cluster has 1 to %d", c.BootstrapExpect, maxExpect)
	case c.HeartbeatTimeout < minHeartbeat:
		return c, fmt.Errorf("config: heartbeat timeout %v is below %v, where a busy machine elects for ever", c.HeartbeatTimeout, minHeartbeat)
	case c.OrderGrace < minGrace:
		return c, fmt.Errorf("config: order grace %v is below %v, in which a busy leader does not answer", c.OrderGrace, minGrace)
	case !c.Agent && c.PeerListener == nil:
		return c, errors.New("config: a server needs a peer listener")
	case c.Agent && len(c.Join) == 0 && len(c.Servers) == 0:
		return c, errors.New("config: an agent needs a cluster to join: give --join")
	case !c.Agent && c.BootstrapExpect > 1 && c.Gossip == "" && len(c.Servers) == 0:
		return c, errors.New("config: a cluster of several servers needs gossip: give --gossip")
	case c.Advertise == "" && (c.BootstrapExpect > 1 || len(c.Join) > 0) && anyAddress(c.PeerListener):
		return c, fmt.Errorf("config: peers listen on %s, which tells other nodes nothing: give the name or address they can reach with --advertise", c.PeerListener.Addr())
	case c.DataDir == "" && c.Stores == nil && !c.Agent:
		return c, errors.New("config: no data directory: give --data-dir")
	}
	return c, nil
}

// anyAddress reports whether a listener takes connections to any address of the host.
func anyAddress(ln net.Listener) bool {
	if ln == nil {
		return false
	}
	tcp, ok := ln.Addr().(*net.TCPAddr)
	return ok && tcp.IP.IsUnspecified()
}
