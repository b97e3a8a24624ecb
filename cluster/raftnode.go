package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

const (
	raftPool    = 3
	raftTimeout = 10 * time.Second

	// trailingLogs is how many entries stay after a snapshot, so that a server
	// which was down for a reboot catches up from the log.
	trailingLogs = 4096

	// commitTimeout bounds how long a follower's own log lags behind commits. It
	// is the backstop of grants, which the leader sends directly.
	commitTimeout = 10 * time.Millisecond
)

// openRaft starts this server's replica, and founds a cluster where that is up to
// this node alone.
func (n *Node) openRaft() error {
	stores := n.cfg.Stores
	if stores == nil {
		if err := n.logThere(); err != nil {
			return err
		}
		s, closeStores, err := openStores(n.cfg.DataDir, n.id, n.log)
		if err != nil {
			return err
		}
		n.closers = append(n.closers, closeStores)
		stores = s
	}
	n.disk = newGuardedDisk(stores, n.fail)
	cache, err := raft.NewLogCache(logCacheEntries, n.disk)
	if err != nil {
		return fmt.Errorf("make log cache: %w", err)
	}
	n.replica = newReplica()
	n.replica.halt = n.fail
	n.replica.written = n.logWritten
	n.replica.restored = func() { n.events.skip(); n.orders.tell(); n.run(n.resync); n.run(n.recharge) }
	n.replica.applied = n.entryApplied

	layer := newRaftLayer(n.mux.Listen(HeaderRaft), n.dialRaft, HeaderRaft, raft.ServerID(n.id), peerAddr(n.addr))
	net := &raft.NetworkTransportConfig{
		Stream:  layer,
		MaxPool: raftPool,
		Timeout: raftTimeout,
		Logger:  n.log.Named("raft-net"),
	}
	place := func(_ raft.ServerID, addr raft.ServerAddress) raft.ServerAddress { return addr }
	if n.gossip != nil {
		place = n.gossip.place
	}
	n.trans = raftTransport{raft.NewNetworkTransportWithConfig(net), n.ctx, place}
	notify := make(chan bool, 16)
	conf := n.raftConfig(notify)
	log := followingLog{cache}
	if err := n.bootstrap(conf, stores, log); err != nil {
		return errors.Join(err, n.trans.Close())
	}
	r, err := raft.NewRaft(conf, n.replica, log, n.disk, stores.Snapshot, n.trans)
	if err != nil {
		return errors.Join(fmt.Errorf("start raft in %s: %w", n.cfg.DataDir, err), n.trans.Close())
	}
	n.raft, n.entries = r, log
	n.run(func() { n.watchLeadership(notify) })
	return nil
}

// logThere refuses to go on without the log that a member of a cluster had: it has
// voted and acknowledged what it would know nothing of.
func (n *Node) logThere() error {
	if n.clusterID() == "" {
		return nil
	}
	path := filepath.Join(n.cfg.DataDir, logFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return damagedLog(path, errors.New("it is gone, and this node had one as a member of a cluster"))
	}
	return nil
}

func (n *Node) raftConfig(notify chan bool) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(n.id)
	conf.Logger = n.log.Named("raft")
	conf.HeartbeatTimeout = n.cfg.HeartbeatTimeout
	conf.ElectionTimeout = n.cfg.HeartbeatTimeout
	conf.LeaderLeaseTimeout = n.cfg.HeartbeatTimeout / 2
	conf.CommitTimeout = commitTimeout
	conf.MaxAppendEntries = 128
	conf.TrailingLogs = trailingLogs
	conf.NotifyCh = notify
	conf.NoLegacyTelemetry = true
	// Entries are batches of very different sizes, so snapshots go by bytes
	// written (logWritten), not by Raft's count of entries.
	conf.SnapshotThreshold = math.MaxUint64
	conf.ShutdownOnRemove = false
	return conf
}

// bootstrap writes the first configuration of a new cluster if this node founds
// one by itself. A cluster of several is founded when they have found each other.
func (n *Node) bootstrap(conf *raft.Config, stores *Stores, log raft.LogStore) error {
	exists, err := raft.HasExistingState(log, n.disk, stores.Snapshot)
	if err != nil {
		return fmt.Errorf("read the state in %s: %w", n.cfg.DataDir, err)
	}
	if exists {
		return nil
	}
	var first raft.Configuration
	switch {
	case len(n.cfg.Servers) > 0:
		for _, s := range n.cfg.Servers {
			first.Servers = append(first.Servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Addr)})
		}
	case n.cfg.BootstrapExpect == 1 && len(n.cfg.Join) == 0:
		if n.clusterID() == "" {
			if err := n.adopt(newID()); err != nil {
				return err
			}
		}
		first.Servers = []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(n.addr)}}
	default:
		return nil
	}
	if err := raft.BootstrapCluster(conf, log, n.disk, stores.Snapshot, n.trans, first); err != nil {
		return fmt.Errorf("found the cluster: %w", err)
	}
	return nil
}

// entryApplied hands on what an entry brought about. Raft's goroutine calls it,
// before the entry's proposer is answered.
func (n *Node) entryApplied(o fsm.Outcome) {
	if len(o.Events) > 0 {
		if n.office.Load() != nil {
			if slices.ContainsFunc(o.Events, func(e fsm.Event) bool { return e.Kind == fsm.EventOrderOpened }) {
				// Before this order everybody has to hear of the earlier ones: what was said
				// of them may have been lost with a connection.
				n.remind()
			}
			n.peers.push(o.Events)
		}
		n.ledger.deliver(o.Events)
		n.events.publish(o.Events)
		n.liveness.note(o.Events)
		n.orders.note(o.Events)
		if p := n.polls.Load(); p != nil {
			p.note(o.Events)
		}
	}
	select {
	case n.applied <- struct{}{}:
	default:
	}
}

// logWritten takes a snapshot when enough has been written since the last one.
func (n *Node) logWritten(size int) {
	if n.sinceCut.Add(int64(size)) < int64(n.cfg.SnapshotBytes) || !n.cutting.CompareAndSwap(false, true) {
		return
	}
	n.run(func() {
		defer n.cutting.Store(false)
		n.sinceCut.Store(0)
		err := n.raft.Snapshot().Error()
		if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && n.ctx.Err() == nil {
			n.log.Error("snapshot failed; the log grows until one succeeds", "error", err)
		}
	})
}

// watchLeader follows Raft's word on who leads.
func (n *Node) watchLeader() {
	ch := make(chan raft.Observation, 64)
	obs := raft.NewObserver(ch, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(obs)
	defer n.raft.DeregisterObserver(obs)
	// An observation may be dropped when many come at once; the ticker repairs that.
	t := time.NewTicker(pingInterval)
	defer t.Stop()
	for {
		n.setLeader(n.elected())
		select {
		case <-n.ctx.Done():
			return
		case <-ch:
		case <-t.C:
		}
	}
}

// elected is the leader as Raft knows it, with its own term and no other: Raft forgets a
// leader before it goes on to the next term.
func (n *Node) elected() peerLeader {
	for {
		term := n.raft.CurrentTerm()
		addr, id := n.raft.LeaderWithID()
		if n.raft.CurrentTerm() == term {
			return peerLeader{ID: string(id), Addr: string(addr), Term: term}
		}
	}
}

// place is where a server is now, in case it has moved since Raft's configuration was
// written with addr.
func (g *gossip) place(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	if string(id) == g.node.id {
		return raft.ServerAddress(g.node.addr)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if now, ok := g.lastAddr[string(id)]; ok {
		return raft.ServerAddress(now)
	}
	return addr
}

// peerAddr is an address as others know it, which need not be one we could listen on.
type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

// dialPeer connects to another node's peer port and says what for.
func (n *Node) dialPeer(ctx context.Context, addr string, header byte) (net.Conn, error) {
	conn, err := n.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetWriteDeadline(deadline)
	}
	if err == nil {
		_, err = conn.Write([]byte{header})
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, conn.SetWriteDeadline(time.Time{})
}

// dialRaft connects to another server for Raft. The connection ends with this node:
// Raft waits for its calls before it stops, and one over a cut link takes longer
// than a stop may.
func (n *Node) dialRaft(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	conn, err := n.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &endingConn{Conn: conn, stop: context.AfterFunc(n.ctx, func() { _ = conn.Close() })}, nil
}

// endingConn is a connection that somebody else may close as well.
type endingConn struct {
	net.Conn
	stop func() bool
}

// Close implements net.Conn.
func (c *endingConn) Close() error {
	c.stop()
	return c.Conn.Close()
}
