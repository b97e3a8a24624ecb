package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

var (
	// ErrNoLeader is returned when no leader has been in reach for
	// Config.NoLeaderGrace. What was asked may yet happen once there is one.
	ErrNoLeader = errors.New("no leader")

	// ErrJoin is the end of a node that found none of the nodes it was to join.
	ErrJoin = errors.New("no node answers at the addresses to join")

	// ErrRemoved is the end of a server that was removed from its cluster: see [Node.Remove].
	ErrRemoved = errors.New("this server was removed from the cluster")

	// ErrClosed is returned for requests to a node that is stopping.
	ErrClosed = errors.New("the node is stopping")
)

const (
	// closeTimeout bounds an orderly stop.
	closeTimeout = 5 * time.Second

	// failedTimeout bounds the stop of a node that has failed already.
	failedTimeout = time.Second

	// handover is how much of that goes to finding a new leader.
	handover = 2 * time.Second

	// outOfReach is how long there may be no leader before new clients are
	// refused. Old clients try the next host only when a connection is refused.
	outOfReach = 3 * time.Second
)

// Node is one running node of the cluster.
type Node struct {
	cfg      Config
	log      hclog.Logger
	id       string // Raft's name for it; kept in the data directory
	boot     string // changes with every start
	host     string
	addr     string // of the peer port, as others reach it
	started  time.Time
	identity *identity // nil with Config.Stores

	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the node has failed or is closed

	mu      sync.Mutex
	wg      sync.WaitGroup // every goroutine; added to under mu until stopped
	stopped bool
	closed  chan struct{} // made when Close begins, closed when it ends
	err     error
	retired bool // told that it was removed from the cluster
	links   map[string]*linkRun
	routed  route
	lead    peerLeader
	changed chan struct{} // closed when lead, or the way to it, changes

	ledger  *ledger
	peers   *peers
	orders  *orders
	events  *feed
	mux     *transport.Mux
	gossip  *gossip
	clients *server

	liveness *liveness

	// Of servers alone; nil in an agent.
	replica   *replica
	raft      *raft.Raft
	entries   raft.LogStore  // Raft's
	verifying sync.WaitGroup // questions to Raft whether this node leads
	trans     raftTransport
	disk      *guardedDisk
	closers   []func() error

	office   atomic.Pointer[office]
	polls    atomic.Pointer[polls] // while in office
	terms    chan struct{}         // closed when this node has led for the last time
	applied  chan struct{}         // poked after every entry, for the leader's clock
	sinceCut atomic.Int64          // bytes of log since the last snapshot
	cutting  atomic.Bool
	space    space
	suspects suspects
	changing chan struct{} // holds a token while a command about membership or leadership runs
}

// linkRun is a link and the end of its goroutine.
type linkRun struct {
	*link
	stop context.CancelFunc
}

// Open starts a node. It serves clients at once; until the cluster has a leader,
// their requests wait.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("learn this host's name: %w", err)
	}
	n := &Node{
		cfg:     cfg,
		log:     cfg.Logger,
		boot:    newID(),
		host:    host,
		started: time.Now(),
		done:    make(chan struct{}),
		links:   make(map[string]*linkRun),
		changed: make(chan struct{}),
		ledger:  newLedger(cfg.Name),
		peers:   newPeers(),
		events:  newFeed(),
		applied: make(chan struct{}, 1),
		terms:   make(chan struct{}),

		changing: make(chan struct{}, 1),
	}
	n.orders = newOrders(n)
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if n.cfg.Dial == nil {
		n.cfg.Dial = (&transport.Dialer{}).Dial
	}
	if err := n.open(); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return nil, errors.Join(err, n.Close(closing))
	}
	return n, nil
}

func (n *Node) open() error {
	if err := n.openIdentity(); err != nil {
		return err
	}
	if err := n.openLiveness(); err != nil {
		return err
	}
	if n.cfg.PeerListener != nil {
		n.addr = advertised(n.cfg.PeerListener.Addr().String(), n.cfg.Advertise)
		n.mux = transport.NewMux(n.cfg.PeerListener)
	}
	// Gossip comes first: Raft asks it for addresses.
	if n.cfg.Gossip != "" {
		if err := n.openGossip(); err != nil {
			return err
		}
	}
	if !n.cfg.Agent {
		if err := n.openRaft(); err != nil {
			return err
		}
		n.run(n.watchLeader)
		n.run(n.watchDisk)
		if n.gossip != nil && n.gossip.notesNames() {
			n.run(n.gossip.keepNames) // of Raft's servers
		}
		ln := n.mux.Listen(HeaderPeer)
		n.run(func() { n.acceptPeers(ln) })
		n.run(func() {
			if err := n.mux.Serve(); err != nil {
				n.fail(fmt.Errorf("peer port: %w", err))
			}
		})
		n.run(n.standAlone)
	}
	n.run(n.keepLinks)
	n.run(n.recoverClaims)
	if x, ok := n.cfg.Executor.(Recoverer); ok {
		n.run(func() { x.Recover(n.ctx, &TaskLocks{node: n}) })
	}
	if n.gossip != nil && !n.cfg.Agent {
		n.run(n.found)
	}
	n.openClients()
	return nil
}

func (n *Node) openIdentity() error {
	if n.cfg.Stores != nil {
		n.id = n.cfg.Stores.ID
		return nil
	}
	if n.cfg.Agent {
		// What it is to the cluster ends with its process. Where it has run it remembers
		// if it can.
		n.identity = agentIdentity(n.cfg.DataDir, n.log)
		n.id = n.identity.ID
		return nil
	}
	id, err := openIdentity(n.cfg.DataDir)
	if err != nil {
		return err
	}
	n.identity, n.id = id, id.ID
	return nil
}

// run starts a goroutine of the node, unless the node has stopped. It must end
// soon after n.ctx does.
func (n *Node) run(f func()) {
	n.mu.Lock()
	if n.stopped {
		n.mu.Unlock()
		return
	}
	n.wg.Add(1)
	n.mu.Unlock()
	go func() {
		defer n.wg.Done()
		f()
	}()
}

// fail ends the node because of err: it can no longer do its part.
func (n *Node) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err == nil && !n.stopped {
		n.err = err
		n.log.Error("the node stops", "error", err)
		n.cancel(err)
		close(n.done)
	}
}

// Done is closed when the node has failed, or has been closed.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err says why the node failed; nil if it did not.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Close stops the node in good order, or, when ctx ends first, in bad. Waiting
// clients are sent elsewhere, leadership is handed over, and what is on disk is closed.
func (n *Node) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	n.mu.Lock()
	if closed := n.closed; closed != nil {
		n.mu.Unlock()
		select { // somebody else is at it
		case <-closed:
		case <-ctx.Done():
		}
		return nil
	}
	n.closed = make(chan struct{})
	n.mu.Unlock()
	defer close(n.closed)

	n.thawAll(ctx)
	if n.clients != nil {
		n.clients.move(ctx, n.otherNodes())
	}
	n.handOver(ctx)
	if n.clients != nil {
		n.clients.close()
	}
	if n.gossip != nil {
		n.gossip.close()
	}

	n.mu.Lock()
	n.stopped = true
	failed, retired := n.err != nil, errors.Is(n.err, ErrRemoved)
	n.mu.Unlock()
	n.cancel(ErrClosed)

	if failed && !retired {
		// A failed disk may hold Raft and all who wait for it for ever.
		var short context.CancelFunc
		ctx, short = context.WithTimeout(ctx, failedTimeout)
		defer short()
	}
	var errs []error
	n.peers.close()
	if n.raft != nil {
		errs = append(errs, waitFor(ctx, func() error { <-n.terms; return nil }))
		errs = append(errs, waitFor(ctx, func() error { n.verifying.Wait(); return nil }))
		errs = append(errs, waitFor(ctx, n.raft.Shutdown().Error), n.trans.Close())
	}
	switch {
	case n.mux != nil:
		errs = append(errs, ignoreClosed(n.mux.Close()))
	case n.cfg.PeerListener != nil:
		errs = append(errs, ignoreClosed(n.cfg.PeerListener.Close()))
	}
	if err := waitFor(ctx, func() error { n.wg.Wait(); return nil }); err != nil {
		errs = append(errs, err)
	} else {
		for _, c := range n.closers {
			errs = append(errs, c())
		}
		if n.cfg.Executor != nil {
			errs = append(errs, n.cfg.Executor.Close())
		}
	}
	n.events.close()
	errs = append(errs, n.liveness.close())
	if failed {
		return nil // Err says what matters; what follows from it does not
	}
	close(n.done)
	return errors.Join(errs...)
}

// ignoreClosed drops the complaint that what is to be closed is closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// waitFor runs f, but not for longer than ctx.
func waitFor(ctx context.Context, f func() error) error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop the node: %w", context.Cause(ctx))
	}
}

// thawAll undoes what this host has frozen for orders, and has the table know.
func (n *Node) thawAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handover)
	defer cancel()
	n.orders.stop(ctx)
}

// handOver gives leadership to another server, so that the cluster goes on at once.
func (n *Node) handOver(ctx context.Context) {
	if n.raft == nil || n.office.Load() == nil || len(n.voters()) < 2 {
		return
	}
	if errors.Is(n.Err(), ErrDisk) {
		return // Raft hangs with its disk, and would never answer
	}
	ctx, cancel := context.WithTimeout(ctx, handover)
	defer cancel()
	if _, err := n.Transfer(ctx, ""); err != nil {
		n.log.Warn("leadership was not handed over; the others will elect a leader", "error", err)
	}
}

// Name is what people call the node.
func (n *Node) Name() string { return n.cfg.Name }

// Version is the program's version.
func (n *Node) Version() string { return n.cfg.Version }

// Started is when the node started.
func (n *Node) Started() time.Time { return n.started }

// Submit proposes a command and waits until it is committed and applied. On any
// error its outcome is unknown.
func (n *Node) Submit(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	return n.submit(ctx, c, nil)
}

// advertised is the address under which others reach a listener: its port, on the
// advertised host if one is given.
func advertised(listen, host string) string {
	if host == "" {
		return listen
	}
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	return net.JoinHostPort(host, port)
}

func (n *Node) clusterID() string {
	if n.identity == nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity.Cluster
}

// adopt makes this node one of a cluster, for good.
func (n *Node) adopt(cluster string) error {
	if n.identity == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.identity.Cluster == cluster {
		return nil
	}
	if n.identity.Cluster != "" {
		return fmt.Errorf("this node belongs to cluster %s already, not to %s", n.identity.Cluster, cluster)
	}
	n.identity.Cluster = cluster
	if n.cfg.Agent {
		return nil // it may be of another one the next time
	}
	return n.identity.save()
}

func (n *Node) hello() peerHello {
	return peerHello{
		Protocol: peerProtocol, Cluster: n.clusterID(), ID: n.id, Name: n.cfg.Name,
		Host: n.host, Agent: n.cfg.Agent, Version: n.cfg.Version, Place: n.liveness.watches(),
	}
}

func (n *Node) welcome() peerWelcome {
	return peerWelcome{
		Protocol: peerProtocol, Cluster: n.clusterID(), ID: n.id, Name: n.cfg.Name,
		Boot: n.boot, Version: n.cfg.Version, Leader: n.leader(), Place: n.liveness.watches(),
	}
}
