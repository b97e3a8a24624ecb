package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// surveyTime bounds the wait for servers to say how they are. One that takes longer
// is out of touch for whoever is to rely on it.
const surveyTime = time.Second

// Refusal is the answer to an operator's command that will not be done. It says why,
// and what to do.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// adminReply is a leader's answer to an operator's command.
type adminReply struct {
	Name string `json:"name,omitempty"` // of the server that it was about, likewise the next two
	ID   string `json:"id,omitempty"`
	Addr string `json:"addr,omitempty"`

	Refused string `json:"refused,omitempty"` // it will not be done
	Failed  string `json:"failed,omitempty"`  // it may be done when asked for again
	Away    string `json:"away,omitempty"`    // this node does not lead, or no longer: ask the next leader
	Begun   bool   `json:"begun,omitempty"`   // Away: something was done about it before
}

// admin has the leader, which may be this node, carry out a command. It is put to
// each leader again until one has an answer, so it has to be one that may be
// repeated. own carries it out here; query makes the question to another leader. Both
// are told the id of the first leader that may have done something about it.
func (n *Node) admin(ctx context.Context, method byte, query func(first string) any, own func(ctx context.Context, first string) adminReply) (adminReply, error) {
	first := ""
	for {
		changed := n.leaderChanged()
		var err error = ErrNoLeader
		var reply adminReply
		asked := ""
		if n.office.Load() != nil {
			asked = n.id
			reply, err = own(ctx, cmp.Or(first, asked)), nil
		} else if l := n.leaderLink(); l != nil {
			asked = l.id
			var b []byte
			b, err = l.ask(ctx, method, mustJSON(query(cmp.Or(first, asked))))
			var remote remoteError
			switch {
			case errors.As(err, &remote):
				return adminReply{}, err
			case err == nil && json.Unmarshal(b, &reply) != nil:
				return adminReply{}, errPeerGarbage
			}
		}
		if err != nil || reply.Begun {
			first = cmp.Or(first, asked)
		}
		switch {
		case err != nil:
		case reply.Refused != "":
			return adminReply{}, Refusal(reply.Refused)
		case reply.Failed != "":
			return adminReply{}, errors.New(reply.Failed)
		case reply.Away == "":
			return reply, nil
		default:
			err = errors.New(reply.Away)
		}
		if err := n.awaitLeader(ctx, changed, err); err != nil {
			return adminReply{}, err
		}
	}
}

// turn waits for the leader's other commands about membership and leadership to end.
func (n *Node) turn(ctx context.Context) (done func(), err error) {
	select {
	case n.changing <- struct{}{}:
		return func() { <-n.changing }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.ctx.Done():
		return nil, ErrClosed
	}
}

// health is what a server says of itself when it is asked whether it is to be relied on.
type health struct {
	LowDisk bool   `json:"low_disk,omitempty"`
	Last    uint64 `json:"last"` // index of the last entry in its log
	Applied uint64 `json:"applied"`
}

func (n *Node) health() health {
	h := health{LowDisk: n.space.isLow()}
	if n.raft != nil {
		h.Last, h.Applied = n.raft.LastIndex(), n.raft.AppliedIndex()
	}
	return h
}

// survey asks servers how they are. Those that do not answer soon are missing in it.
func (n *Node) survey(ctx context.Context, servers []raft.Server) map[raft.ServerID]health {
	ctx, cancel := context.WithTimeout(ctx, surveyTime)
	defer cancel()
	var mu sync.Mutex
	got := make(map[raft.ServerID]health)
	var asked sync.WaitGroup
	for _, s := range servers {
		if string(s.ID) == n.id {
			mu.Lock()
			got[s.ID] = n.health()
			mu.Unlock()
			continue
		}
		n.mu.Lock()
		l := n.links[string(s.ID)]
		n.mu.Unlock()
		if l == nil {
			continue
		}
		asked.Go(func() {
			b, err := l.ask(ctx, askHealth, nil)
			var h health
			if err != nil || json.Unmarshal(b, &h) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got[s.ID] = h
		})
	}
	asked.Wait()
	return got
}

// namedServer is a server by all that an operator may call it.
type namedServer struct {
	raft.Server
	Name   string
	Member bool // of Raft's configuration
	Up     bool // in touch
}

// title is what to call it to people.
func (s namedServer) title() string {
	if s.Name != "" {
		return s.Name
	}
	return string(s.ID)
}

func (s namedServer) called(what string) bool {
	return what != "" && (string(s.ID) == what || s.Name == what || string(s.Address) == what)
}

// named lists the servers that Raft or gossip knows.
func (n *Node) named() []namedServer {
	names := n.names()
	var list []namedServer
	has := make(map[string]bool)
	for _, s := range n.voters() {
		has[string(s.ID)] = true
		list = append(list, namedServer{Server: s, Name: names[string(s.ID)], Member: true, Up: n.linked(string(s.ID))})
	}
	for _, m := range n.nearby() {
		if !has[m.ID] {
			s := raft.Server{Suffrage: raft.Nonvoter, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Addr)}
			list = append(list, namedServer{Server: s, Name: m.Name, Up: n.linked(m.ID)})
		}
	}
	return list
}

// pick finds the server that an operator calls what: by its name, id or peer address.
func pick(list []namedServer, what string) (namedServer, error) {
	if i := slices.IndexFunc(list, func(s namedServer) bool { return string(s.ID) == what }); i >= 0 {
		return list[i], nil
	}
	var fit []namedServer
	for _, s := range list {
		if s.called(what) {
			fit = append(fit, s)
		}
	}
	switch len(fit) {
	case 0:
		return namedServer{}, Refusal(fmt.Sprintf("no server is called %s: lockctl status lists the servers", what))
	case 1:
		return fit[0], nil
	}
	var ids []string
	for _, s := range fit {
		standing := "out of touch"
		if s.Up {
			standing = "in touch"
		}
		if !s.Member {
			standing += ", not in the cluster yet"
		}
		ids = append(ids, fmt.Sprintf("%s (%s)", s.ID, standing))
	}
	return namedServer{}, Refusal(fmt.Sprintf("%d servers are called %s: say which by its id, %s", len(fit), what, strings.Join(ids, " or ")))
}
