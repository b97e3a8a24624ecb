package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// Status is what a node says of itself, and of the cluster as it sees it.
type Status struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Cluster string    `json:"cluster,omitempty"`
	Host    string    `json:"host"`
	Role    string    `json:"role"` // leader, follower, candidate, shutdown or agent
	Version string    `json:"version"`
	Started time.Time `json:"started"`

	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why it is not ready

	Executors bool `json:"executors,omitempty"` // orders may name this node

	Leader     string `json:"leader"` // its name; empty while there is none, or gossip has not told
	LeaderID   string `json:"leader_id"`
	LeaderAddr string `json:"leader_addr"` // of its peer port

	Term    uint64         `json:"term"`
	Commit  uint64         `json:"commit_index"`
	Applied uint64         `json:"applied_index"`
	Servers []ServerStatus `json:"servers"`

	Counts *TableCounts `json:"counts"`                 // null on an agent
	Digest string       `json:"digest,omitempty"`       // of the table, if it was asked for
	Index  uint64       `json:"digest_index,omitempty"` // the last log entry in Digest
}

// ServerStatus is a server as another node sees it.
type ServerStatus struct {
	Name      string `json:"name,omitempty"` // empty if gossip has not told
	ID        string `json:"id"`
	Addr      string `json:"addr"` // of its peer port
	Voter     bool   `json:"voter"`
	Leader    bool   `json:"leader"`
	Reachable bool   `json:"reachable"`
}

// TableCounts are the sizes of the lock table.
type TableCounts struct {
	Locks  int    `json:"locks"` // held or waited for
	Holds  int    `json:"holds"`
	Waits  int    `json:"waits"`
	Nodes  int    `json:"nodes"`  // that take part in the table
	Fence  uint64 `json:"fence"`  // the last one given out: how many holds there ever were
	Ticket uint64 `json:"ticket"` // the last one given out: how many waits there ever were

	Orders      int               `json:"orders"`       // that are open
	OrdersEnded map[string]uint64 `json:"orders_ended"` // that there ever were, by reason
}

// Member is a node in gossip.
type Member struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Kind    string `json:"kind"` // server or agent
	Host    string `json:"host,omitempty"`
	Peer    string `json:"peer,omitempty"`   // address of the peer port
	Client  string `json:"client,omitempty"` // address of the client port
	Version string `json:"version,omitempty"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
	Note    string `json:"note,omitempty"` // what is wrong with it, and what to do
}

// Report is the node's status. It asks nobody, so it has an answer when the
// cluster has none. With digest it hashes the whole table, which takes about as
// long as a snapshot.
func (n *Node) Report(ctx context.Context, digest bool) (Status, error) {
	s := Status{
		Name: n.cfg.Name, ID: n.id, Cluster: n.clusterID(), Host: n.host,
		Role: "agent", Version: n.cfg.Version, Started: n.started,
		Term: n.leader().Term, Servers: n.serverStatus(ctx),
		Executors: n.cfg.Executor != nil,
	}
	for _, v := range s.Servers {
		if v.Leader {
			s.Leader, s.LeaderID, s.LeaderAddr = v.Name, v.ID, v.Addr
		}
	}
	if err := n.inTouch(); err != nil {
		s.Reason = err.Error()
	}
	s.Ready = s.Reason == ""
	if n.raft == nil {
		return s, nil
	}
	s.Role = strings.ToLower(n.raft.State().String())
	s.Term, s.Commit, s.Applied = n.raft.CurrentTerm(), n.raft.CommitIndex(), n.raft.AppliedIndex()
	n.replica.view(func(m *fsm.Machine) {
		c := m.Counts()
		s.Counts = &TableCounts{
			Locks: c.Locks, Holds: c.Holds, Waits: c.Waits, Nodes: c.Nodes,
			Fence: uint64(c.Fence), Ticket: uint64(c.Ticket),
			Orders: c.Orders, OrdersEnded: make(map[string]uint64),
		}
		for reason := fsm.OrderThawed; int(reason) < len(c.Ended); reason++ {
			s.Counts.OrdersEnded[reason.String()] = c.Ended[reason]
		}
	})
	if !digest {
		return s, nil
	}
	var err error
	s.Index, s.Digest, err = n.replica.digest(ctx)
	return s, err
}

// digest hashes the table without holding up Apply.
func (r *replica) digest(ctx context.Context) (index uint64, digest string, err error) {
	r.mu.Lock()
	index, snap := r.index, r.machine.Snapshot()
	r.mu.Unlock()
	h := fnv.New64a()
	err = snap.Encode(func(b []byte) error {
		_, _ = h.Write(b) // never fails: hash.Hash
		return context.Cause(ctx)
	})
	return index, fmt.Sprintf("%016x", h.Sum64()), err
}

// serverStatus lists the servers that Raft or gossip knows, by name and id.
func (n *Node) serverStatus(ctx context.Context) []ServerStatus {
	voters := n.voterIDs(ctx)
	names := n.names()
	lead := n.leader().ID
	list := []ServerStatus{}
	for id, addr := range n.servers() {
		list = append(list, ServerStatus{
			Name: names[id], ID: id, Addr: addr,
			Voter: voters[id], Leader: id == lead, Reachable: n.linked(id),
		})
	}
	slices.SortFunc(list, func(a, b ServerStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Members lists the live nodes of the cluster, by name.
func (n *Node) Members(ctx context.Context) ([]Member, error) {
	voters, lead := n.voterIDs(ctx), n.leader().ID
	list := []Member{}
	if n.gossip == nil {
		for _, s := range n.serverStatus(ctx) {
			if s.Reachable {
				list = append(list, Member{Name: s.Name, ID: s.ID, Kind: "server", Peer: s.Addr, Voter: s.Voter, Leader: s.Leader})
			}
		}
		return list, nil
	}
	if n.raft == nil {
		if l := n.leaderLink(); l != nil {
			// Only servers see Raft's configuration.
			if b, err := l.ask(ctx, askMembers, nil); err == nil && json.Unmarshal(b, &list) == nil {
				return list, nil
			}
			list = []Member{}
		}
	}
	notes := n.notes()
	for _, m := range n.gossip.all() {
		kind := "server"
		if m.Agent {
			kind = "agent"
		}
		list = append(list, Member{
			Name: m.Name, ID: m.ID, Kind: kind, Host: m.Host, Peer: m.Addr, Client: m.Client,
			Version: m.Version, Voter: voters[m.ID], Leader: m.ID == lead, Note: notes[m.ID],
		})
	}
	return list, nil
}

// notes says what is wrong with servers that are there, by id.
func (n *Node) notes() map[string]string {
	notes := make(map[string]string)
	for id, old := range strays(n.voters(), n.nearby()) {
		notes[id] = fmt.Sprintf("has come back without its data: lockctl remove %s, then it is taken in", old)
	}
	for _, c := range n.removed() {
		notes[c.ID] = "is being removed"
		if c.Out {
			notes[c.ID] = "was removed: it ends when it hears of that, and its data has to be wiped to let it join again"
		}
	}
	return notes
}

// Ready says why the node cannot serve now: nil if a leader is in reach and has
// just let this node read the table.
func (n *Node) Ready(ctx context.Context) error {
	if err := n.inTouch(); err != nil || n.replica == nil {
		return err
	}
	_, err := n.catchUp(ctx)
	return err
}

// inTouch is Ready without asking anybody.
func (n *Node) inTouch() error {
	switch {
	case n.Err() != nil:
		return n.Err()
	case n.ctx.Err() != nil:
		return ErrClosed
	case n.office.Load() == nil && n.leaderLink() == nil:
		return n.noLeader()
	}
	return nil
}

// linked reports whether this node is in touch with a server, or is that server.
func (n *Node) linked(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[id]
	return id == n.id || l != nil && l.up()
}

// voterIDs are the servers with a vote. An agent, which does not see Raft's
// configuration, asks a server; it knows of none while none is in reach.
func (n *Node) voterIDs(ctx context.Context) map[string]bool {
	ids := make(map[string]bool)
	if l := n.leaderLink(); n.raft == nil && l != nil {
		if b, err := l.ask(ctx, askVoters, nil); err == nil {
			_ = json.Unmarshal(b, &ids) // what is no answer tells of nobody
		}
		return ids
	}
	for _, s := range n.voters() {
		if s.Suffrage == raft.Voter {
			ids[string(s.ID)] = true
		}
	}
	return ids
}

// names are the names of the nodes by id, as far as they are known.
func (n *Node) names() map[string]string {
	names := map[string]string{n.id: n.cfg.Name}
	if n.gossip != nil {
		n.gossip.mu.Lock()
		maps.Copy(names, n.gossip.lastName)
		n.gossip.mu.Unlock()
	}
	return names
}
