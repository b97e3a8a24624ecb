package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// rejoinEvery is how often lost contact is sought again: memberlist forgets
	// dead members and never redials them.
	rejoinEvery = 10 * time.Second

	// joinEvery is the same while no other node has been found yet.
	joinEvery = 500 * time.Millisecond

	leaveTimeout = 500 * time.Millisecond

	// joinWarn is how long a search goes on before it is mentioned, and
	// joinPatience how long before a node that cannot be of use without the
	// others gives it up.
	joinWarn     = 2 * time.Second
	joinPatience = 30 * time.Second

	// reclaim is how long a dead member's name stays its address's.
	reclaim = 5 * time.Second
)

// gossiped is what a node tells all others of itself: memberlist carries at most
// 512 bytes of it.
type gossiped struct {
	ID      string `json:"i"`
	Name    string `json:"n"`
	Cluster string `json:"c,omitempty"`
	Addr    string `json:"p,omitempty"` // of the peer port; agents have none
	Client  string `json:"l,omitempty"` // of the client port
	Host    string `json:"h,omitempty"`
	Expect  int    `json:"e,omitempty"`
	Agent   bool   `json:"a,omitempty"`
	Version string `json:"v,omitempty"`
}

// gossip is this node's membership in memberlist: who is there, and where.
type gossip struct {
	node    *Node
	log     hclog.Logger
	list    *memberlist.Memberlist
	deaths  *memberlist.TransmitLimitedQueue
	changed chan struct{} // poked when members come, go or change
	named   chan struct{} // poked when a name was heard

	mu      sync.Mutex
	members map[string]gossiped // by id
	foreign map[string]bool     // clusters complained about

	lastAddr map[string]string // peer addresses by id, of members long gone too
	lastName map[string]string // and their names, also of before this process
}

func (n *Node) openGossip() error {
	g := &gossip{
		node: n, log: n.log.Named("gossip"),
		changed: make(chan struct{}, 1),
		named:   make(chan struct{}, 1),
		members: make(map[string]gossiped),
		foreign: make(map[string]bool),

		lastAddr: make(map[string]string),
		lastName: make(map[string]string),
	}
	if g.notesNames() {
		names, err := loadNames(n.cfg.DataDir)
		if err != nil {
			g.log.Warn("servers that stay away are known by their ids only", "error", err)
		}
		maps.Copy(g.lastName, names)
	}
	host, portText, err := net.SplitHostPort(n.cfg.Gossip)
	if err != nil {
		return fmt.Errorf("gossip address %q: %w (give HOST:PORT)", n.cfg.Gossip, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return fmt.Errorf("gossip address %q: the port is not a number", n.cfg.Gossip)
	}
	ip, err := resolveBind(n.ctx, host)
	if err != nil {
		return fmt.Errorf("gossip address %q: %w", n.cfg.Gossip, err)
	}
	if err := g.checkJoin(); err != nil {
		return err
	}
	conf := memberlist.DefaultLANConfig()
	conf.Name = n.id
	conf.BindAddr, conf.BindPort = ip, port
	conf.AdvertisePort = port
	if h := n.cfg.Advertise; h != "" {
		if only, _, err := net.SplitHostPort(h); err == nil {
			h = only
		}
		addr, err := resolveBind(n.ctx, h)
		if err != nil {
			return fmt.Errorf("advertised address %q: %w", n.cfg.Advertise, err)
		}
		conf.AdvertiseAddr = addr
	}
	g.deaths = &memberlist.TransmitLimitedQueue{NumNodes: g.size, RetransmitMult: conf.RetransmitMult}
	conf.DeadNodeReclaimTime = reclaim
	conf.Delegate = g
	conf.Events = g
	conf.Conflict = g
	conf.Logger = g.log.StandardLogger(&hclog.StandardLoggerOptions{InferLevels: true})
	list, err := memberlist.Create(conf)
	if err != nil && strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
		err = syscall.EADDRINUSE // memberlist has made a text of it
	}
	if err != nil {
		return fmt.Errorf("gossip on %s: %w (give another --gossip, or stop what uses it)", n.cfg.Gossip, err)
	}
	g.list = list
	n.gossip = g
	n.run(g.keepJoined)
	return nil
}

// resolveBind gives the IP address that memberlist needs for a host name.
func resolveBind(ctx context.Context, host string) (string, error) {
	if host == "" {
		return "0.0.0.0", nil
	}
	if net.ParseIP(host) != nil {
		return host, nil
	}
	addrs, err := net.DefaultResolver.LookupIP(ctx, "ip4", host)
	if err != nil || len(addrs) == 0 {
		return "", fmt.Errorf("look up %s: %w", host, err)
	}
	return addrs[0].String(), nil
}

// checkJoin refuses join addresses that can never work. A node that has been in a
// cluster is let off the look-up: it must start even while the name service is down.
func (g *gossip) checkJoin() error {
	for _, a := range g.node.cfg.Join {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return fmt.Errorf("--join %s: %w (give HOST:PORT of another node's gossip port)", a, err)
		}
		if g.node.clusterID() != "" {
			continue
		}
		if _, err := net.DefaultResolver.LookupHost(g.node.ctx, host); err != nil {
			return fmt.Errorf("--join %s: %w (correct the name, or give an address)", a, err)
		}
	}
	return nil
}

func (g *gossip) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(len(g.members), 1)
}

// self is what this node tells of itself.
func (g *gossip) self() gossiped {
	n := g.node
	m := gossiped{
		ID: n.id, Name: n.cfg.Name, Cluster: n.clusterID(), Host: n.host,
		Agent: n.cfg.Agent, Version: n.cfg.Version, Client: n.clientAddr(),
	}
	if !n.cfg.Agent {
		m.Addr, m.Expect = n.addr, n.cfg.BootstrapExpect
	}
	return m
}

// keepJoined looks for the rest of the cluster, and keeps looking for what is lost.
func (g *gossip) keepJoined() {
	began, warned := time.Now(), time.Now().Add(-rejoinEvery+joinWarn)
	for {
		wait := rejoinEvery
		if len(g.node.cfg.Join) > 0 && g.list.NumMembers() == 1 {
			_, err := g.list.Join(g.node.cfg.Join)
			if g.list.NumMembers() == 1 {
				wait = joinEvery
				if time.Since(warned) > rejoinEvery {
					warned = time.Now()
					g.log.Warn("no other node answers at the addresses of --join; still trying", "join", g.node.cfg.Join, "error", err)
				}
				if g.node.newcomer() && time.Since(began) > joinPatience {
					g.node.fail(fmt.Errorf("%w: %s (correct --join, or start one of these nodes first)", ErrJoin, strings.Join(g.node.cfg.Join, ", ")))
					return
				}
			}
		} else if len(g.node.cfg.Join) > 0 {
			// Errors are usual here: the list names this node, and nodes that are down.
			_, _ = g.list.Join(g.node.cfg.Join)
		}
		t := time.NewTimer(wait)
		select {
		case <-g.node.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// newcomer reports whether this node has never been in a cluster and is to join one
// that is there: it is no founder, for whom the others may come in any order.
func (n *Node) newcomer() bool {
	return n.clusterID() == "" && n.cfg.BootstrapExpect == 1
}

// announce tells the others that something about this node has changed.
func (g *gossip) announce() {
	if err := g.list.UpdateNode(leaveTimeout); err != nil {
		g.log.Debug("announce", "error", err)
	}
}

func (g *gossip) close() {
	if err := g.list.Leave(leaveTimeout); err != nil {
		g.log.Debug("leave", "error", err)
	}
	if err := g.list.Shutdown(); err != nil {
		g.log.Debug("shut down", "error", err)
	}
}

// all lists the live members of this node's cluster, and those of none yet, by name.
func (g *gossip) all() []gossiped {
	own := g.node.clusterID()
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []gossiped
	for _, m := range g.members {
		if m.Cluster != "" && own != "" && m.Cluster != own {
			continue
		}
		list = append(list, m)
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].Name != list[j].Name {
			return list[i].Name < list[j].Name
		}
		return list[i].ID < list[j].ID
	})
	return list
}

// servers lists the live servers among all.
func (g *gossip) servers() []gossiped {
	var list []gossiped
	for _, m := range g.all() {
		if !m.Agent && m.Addr != "" {
			list = append(list, m)
		}
	}
	return list
}

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(limit int) []byte {
	m := g.self()
	b := mustJSON(m)
	if len(b) > limit {
		m.Host, m.Client, m.Version = "", "", ""
		b = mustJSON(m)
	}
	return b
}

// NotifyMsg implements memberlist.Delegate: the message is a death.
func (g *gossip) NotifyMsg(b []byte) {
	var gone fsm.ProcessGone
	if json.Unmarshal(b, &gone) == nil {
		g.heard(gone)
	}
}

// GetBroadcasts implements memberlist.Delegate.
func (g *gossip) GetBroadcasts(overhead, limit int) [][]byte {
	return g.deaths.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate: the deaths nobody has answered for.
func (g *gossip) LocalState(bool) []byte { return mustJSON(g.node.liveness.pending()) }

// MergeRemoteState implements memberlist.Delegate.
func (g *gossip) MergeRemoteState(b []byte, _ bool) {
	var list []fsm.ProcessGone
	if len(b) > maxPeerRequest || json.Unmarshal(b, &list) != nil {
		return
	}
	for _, gone := range list {
		g.heard(gone)
	}
}

// maxRumour is the size of a broadcast that still fits a datagram beside others.
const maxRumour = 1000

// spread broadcasts a death, beside the report to the leader: that one waits for
// an election to end, and gossip may find a way where this node has none.
func (g *gossip) spread(gone fsm.ProcessGone) {
	b := mustJSON(gone)
	for len(b) > maxRumour && len(gone.Fences)+len(gone.Tickets) > 1 {
		gone.Fences, gone.Tickets = gone.Fences[:len(gone.Fences)/2], gone.Tickets[:len(gone.Tickets)/2]
		b = mustJSON(gone)
	}
	g.deaths.QueueBroadcast(rumour(b))
}

// heard has the leader act on a death it has heard of. Twice does no harm.
func (g *gossip) heard(gone fsm.ProcessGone) {
	if o := g.node.office.Load(); o != nil {
		o.propose(fsm.Proposal{Command: gone}, func(fsm.Result, error) {})
	}
}

// rumour is a broadcast that nothing invalidates.
type rumour []byte

// Invalidates implements memberlist.Broadcast.
func (rumour) Invalidates(memberlist.Broadcast) bool { return false }

// Message implements memberlist.Broadcast.
func (r rumour) Message() []byte { return r }

// Finished implements memberlist.Broadcast.
func (rumour) Finished() {}

// NotifyJoin implements memberlist.EventDelegate.
func (g *gossip) NotifyJoin(m *memberlist.Node) { g.note(m) }

// NotifyUpdate implements memberlist.EventDelegate.
func (g *gossip) NotifyUpdate(m *memberlist.Node) { g.note(m) }

// NotifyLeave implements memberlist.EventDelegate.
func (g *gossip) NotifyLeave(m *memberlist.Node) {
	g.mu.Lock()
	delete(g.members, m.Name)
	g.mu.Unlock()
	g.poke()
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (g *gossip) NotifyConflict(existing, other *memberlist.Node) {
	g.log.Error("two nodes have one identity: was a data directory copied? stop one and give it an empty one",
		"id", existing.Name, "addr", existing.Address(), "other", other.Address())
}

func (g *gossip) note(node *memberlist.Node) {
	var m gossiped
	if err := json.Unmarshal(node.Meta, &m); err != nil || m.ID != node.Name {
		g.log.Warn("a member says nothing we understand of itself", "addr", node.Address(), "error", errors.Join(err))
		return
	}
	own := g.node.clusterID()
	g.mu.Lock()
	g.members[m.ID] = m
	if m.Addr != "" {
		g.lastAddr[m.ID], g.lastName[m.ID] = m.Addr, m.Name
	}
	complain := own != "" && m.Cluster != "" && m.Cluster != own && !g.foreign[m.Cluster]
	if complain {
		g.foreign[m.Cluster] = true
	}
	g.mu.Unlock()
	if complain {
		g.log.Error("a node of another cluster is in the gossip: correct --join, or give one of them an empty --data-dir",
			"name", m.Name, "addr", node.Address(), "cluster", m.Cluster, "own", own)
	}
	g.poke()
	select {
	case g.named <- struct{}{}:
	default:
	}
}

func (g *gossip) poke() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}
