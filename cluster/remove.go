package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// RemovedServer is a server that is out of the cluster.
type RemovedServer struct {
	ID   string `json:"id"`
	Name string `json:"name"` // empty if nobody in reach knows it
	Addr string `json:"addr"` // of its peer port
}

type removeQuery struct {
	Node  string `json:"node"`
	Force bool   `json:"force,omitempty"`
}

// Remove takes a server out of the cluster for good, by its name, id or peer address.
// It may be dead. If it leads, it hands over first. With force, the servers that are
// left need not be in touch. A [Refusal] says why it will not be done. Removing it
// again does no harm.
func (n *Node) Remove(ctx context.Context, node string, force bool) (RemovedServer, error) {
	q := removeQuery{Node: node, Force: force}
	reply, err := n.admin(ctx, askRemove,
		func(string) any { return q },
		func(ctx context.Context, _ string) adminReply { return n.expel(ctx, q) })
	return RemovedServer{ID: reply.ID, Name: reply.Name, Addr: reply.Addr}, err
}

// expel removes a server, as the leader. The table learns first what was decided, so
// that the next leader completes it if this one does not; then Raft's configuration
// changes; and then the table learns that it is done. Only then is the server told:
// until then its vote may count.
func (n *Node) expel(ctx context.Context, q removeQuery) adminReply {
	done, err := n.turn(ctx)
	if err != nil {
		return adminReply{Failed: err.Error()}
	}
	defer done()
	o := n.office.Load()
	if o == nil {
		return adminReply{Away: errOutOfOffice.Error()}
	}
	gone := n.removed()
	list := slices.DeleteFunc(n.named(), func(s namedServer) bool { return !s.Member && gone.out(string(s.ID)) })
	target, err := n.toRemove(list, gone, q.Node)
	if err != nil {
		return adminReply{Refused: err.Error()}
	}
	reply := adminReply{ID: string(target.ID), Name: target.Name, Addr: string(target.Address)}
	if !target.Member && gone.out(reply.ID) {
		return reply
	}
	if target.Member {
		got := n.survey(ctx, n.voters())
		if err := spare(list, target, got, q.Force); err != nil {
			return adminReply{Refused: err.Error()}
		}
		if reply.ID == n.id {
			return n.stepAside(ctx, o, list, got)
		}
	}
	n.log.Info("removing a server", "name", target.Name, "id", target.ID, "addr", target.Address, "force", q.Force)
	note := fsm.RemoveServer{ID: reply.ID, Name: reply.Name, Addr: reply.Addr}
	err = o.note(ctx, note)
	if err == nil && target.Member {
		err = waitFor(ctx, n.raft.RemoveServer(target.ID, 0, memberChangeTimeout).Error)
	}
	if err == nil {
		note.Out = true
		err = o.note(ctx, note)
	}
	switch {
	case errors.Is(err, errOutOfOffice), errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return adminReply{Away: errOutOfOffice.Error(), Begun: true}
	case err != nil:
		return adminReply{Failed: fmt.Sprintf("it is not known whether %s is removed: %v (remove it again, which does no harm)", target.title(), err)}
	}
	n.log.Info("server removed", "name", target.Name, "id", target.ID, "addr", target.Address)
	return reply
}

// toRemove finds the server that an operator wants removed, also one that is removed
// already.
func (n *Node) toRemove(list []namedServer, gone removals, what string) (namedServer, error) {
	target, err := pick(list, what)
	if err == nil {
		return target, nil
	}
	var ambiguous bool
	for _, s := range list {
		ambiguous = ambiguous || s.called(what)
	}
	if c, ok := gone.find(what); ok && !ambiguous {
		s := raft.Server{ID: raft.ServerID(c.ID), Address: raft.ServerAddress(c.Addr)}
		return namedServer{Server: s, Name: c.Name}, nil
	}
	if n.gossip != nil {
		for _, m := range n.gossip.all() {
			if m.Agent && (m.ID == what || m.Name == what) {
				return target, Refusal(fmt.Sprintf("%s is an agent, which has no data and no vote: stop it, and that is all", what))
			}
		}
	}
	return target, err
}

// spare says why the cluster cannot do without a server.
func spare(list []namedServer, target namedServer, got map[raft.ServerID]health, force bool) error {
	if target.Suffrage != raft.Voter {
		return nil
	}
	left, touch := 0, 0
	for _, s := range list {
		if s.Suffrage == raft.Voter && s.ID != target.ID {
			left++
			if _, ok := got[s.ID]; ok {
				touch++
			}
		}
	}
	need := left/2 + 1
	switch {
	case left == 0:
		return Refusal(fmt.Sprintf("%s is the last server with a vote: let another one join first", target.title()))
	case touch < need && !force:
		return Refusal(fmt.Sprintf("without %s there are %d servers with a vote, of which %d have to be in touch and %d are: start the others first, or add --force if they will be back, for until then nothing can be granted or released", target.title(), left, need, touch))
	}
	return nil
}

// stepAside hands leadership over, so that the next leader removes this server.
func (n *Node) stepAside(ctx context.Context, o *office, list []namedServer, got map[raft.ServerID]health) adminReply {
	to, err := heir(list, n.id, namedServer{}, got)
	if err != nil {
		return adminReply{Refused: fmt.Sprintf("%s leads, and would have to hand over first: %v", n.cfg.Name, err)}
	}
	if _, failed := n.handOverTo(ctx, o, to); failed != nil {
		return *failed
	}
	return adminReply{Away: n.cfg.Name + " has handed over and is to be removed", Begun: true}
}

// note has the table remember what becomes of a server.
func (o *office) note(ctx context.Context, c fsm.RemoveServer) error {
	res, err := o.do(ctx, c)
	if err == nil && res.Code != fsm.Done {
		err = fmt.Errorf("the table does not take it: %v %s", res.Code, res.Reason)
	}
	return err
}

// removals are the servers that are or are to be out of the cluster.
type removals []fsm.RemoveServer

// removed is what this server's replica knows of that. An agent knows nothing.
func (n *Node) removed() (list removals) {
	if n.replica != nil {
		n.replica.view(func(m *fsm.Machine) { list = m.Removed() })
	}
	return list
}

func (r removals) get(id string) (fsm.RemoveServer, bool) {
	i := slices.IndexFunc(r, func(c fsm.RemoveServer) bool { return c.ID == id })
	if i < 0 {
		return fsm.RemoveServer{}, false
	}
	return r[i], true
}

// out reports whether a server is out of the cluster for certain.
func (r removals) out(id string) bool {
	c, ok := r.get(id)
	return ok && c.Out
}

// find is the server that was called what, the latest one if there were several.
func (r removals) find(what string) (fsm.RemoveServer, bool) {
	if c, ok := r.get(what); ok {
		return c, true
	}
	for _, c := range slices.Backward(r) {
		if what != "" && (c.Name == what || c.Addr == what) {
			return c, true
		}
	}
	return fsm.RemoveServer{}, false
}
