package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"
)

// transferQuery asks the leader to hand over. From is the leader that was first asked
// for it and may have done it: without a name in To, the job is done once another one leads.
type transferQuery struct {
	To   string `json:"to,omitempty"`
	From string `json:"from,omitempty"`
}

// Transfer hands leadership to a server, by its name, id or peer address, or with ""
// to the one that is best fit for it. It returns the leader's name once that one is in office. A
// [Refusal] says why it will not be done.
func (n *Node) Transfer(ctx context.Context, to string) (leader string, err error) {
	reply, err := n.admin(ctx, askTransfer,
		func(first string) any { return transferQuery{To: to, From: first} },
		func(ctx context.Context, first string) adminReply {
			return n.handTo(ctx, transferQuery{To: to, From: first})
		})
	return cmp.Or(reply.Name, reply.ID), err
}

// handTo hands leadership over and waits until the new leader is in office.
func (n *Node) handTo(ctx context.Context, q transferQuery) adminReply {
	done, err := n.turn(ctx)
	if err != nil {
		return adminReply{Failed: err.Error()}
	}
	defer done()
	o := n.office.Load()
	if o == nil {
		return adminReply{Away: errOutOfOffice.Error()}
	}
	list := n.named()
	if q.To == "" && q.From != n.id {
		return n.leads(n.id)
	}
	var target namedServer
	if q.To != "" {
		if target, err = pick(list, q.To); err != nil {
			return adminReply{Refused: err.Error()}
		}
		if string(target.ID) == n.id {
			return n.leads(n.id)
		}
	}
	target, err = heir(list, n.id, target, n.survey(ctx, n.voters()))
	if err != nil {
		return adminReply{Refused: err.Error()}
	}
	id, failed := n.handOverTo(ctx, o, target)
	if failed != nil {
		return *failed
	}
	return n.leads(id)
}

// handOverTo hands leadership over and waits until the next leader is in office. If
// that is not the target, or if there is none, it says so in failed.
func (n *Node) handOverTo(ctx context.Context, o *office, target namedServer) (leader string, failed *adminReply) {
	n.log.Info("handing leadership over", "to", target.title())
	err := waitFor(ctx, n.raft.LeadershipTransferToServer(target.ID, target.Address).Error)
	switch {
	case errors.Is(err, raft.ErrNotLeader): // it does not know yet that it is out of office
		return "", &adminReply{Away: errOutOfOffice.Error()}
	case errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		// A leader hands over by itself when it stops or its disk is full.
		return "", &adminReply{Away: "leadership is being handed over already", Begun: true}
	case err != nil:
		return "", &adminReply{Failed: fmt.Sprintf("%s has not taken over, and %s still leads: %v (try again)", target.title(), n.cfg.Name, err)}
	}
	id, err := n.successor(ctx, o.term)
	switch {
	case err != nil:
		return "", &adminReply{Failed: fmt.Sprintf("%s has handed over, but no new leader is in office yet: %v (see lockctl status)", n.cfg.Name, err)}
	case id != string(target.ID):
		return "", &adminReply{Failed: fmt.Sprintf("%s leads, since %s was not elected (try again)", n.leads(id).Name, target.title())}
	}
	return id, nil
}

// leads is the answer that a server leads.
func (n *Node) leads(id string) adminReply {
	return adminReply{ID: id, Name: cmp.Or(n.names()[id], id)}
}

// successor waits until some server is in office after this one, which was in term.
func (n *Node) successor(ctx context.Context, term uint64) (id string, err error) {
	for {
		changed := n.leaderChanged()
		if o := n.office.Load(); o != nil && o.term != term {
			return n.id, nil
		}
		err := error(ErrNoLeader)
		if id := n.leader().ID; id != n.id {
			if l := n.leaderLink(); l != nil {
				// Only who is in office vouches for an index.
				if _, err = l.ask(ctx, askIndex, nil); err == nil {
					return id, nil
				}
			}
		}
		if err := n.awaitLeader(ctx, changed, err); err != nil {
			return "", err
		}
	}
}

// heir is the server that leadership is to go to: target, if one is named, or the one
// with the longest log among those that are fit.
func heir(list []namedServer, own string, target namedServer, got map[raft.ServerID]health) (namedServer, error) {
	if target.ID != "" {
		h, there := got[target.ID]
		switch {
		case target.Suffrage != raft.Voter:
			return target, Refusal(fmt.Sprintf("%s has no vote yet: a new server gets one some seconds after it has the log", target.title()))
		case !there:
			return target, Refusal(fmt.Sprintf("%s is not in touch with the leader: start it, or name another server", target.title()))
		case h.LowDisk:
			return target, Refusal(fmt.Sprintf("the disk of %s is nearly full: make room there, or name another server", target.title()))
		}
		return target, nil
	}
	var fit []namedServer
	for _, s := range list {
		h, there := got[s.ID]
		if there && !h.LowDisk && s.Suffrage == raft.Voter && string(s.ID) != own {
			fit = append(fit, s)
		}
	}
	if len(fit) == 0 {
		return target, Refusal("no other server can lead: none that has a vote is in touch and has room on its disk")
	}
	return slices.MinFunc(fit, func(a, b namedServer) int {
		return cmp.Or(cmp.Compare(got[b.ID].Last, got[a.ID].Last), cmp.Compare(a.ID, b.ID))
	}), nil
}
