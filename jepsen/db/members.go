package db

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// adminTime is how long a change of the leader or of the servers may take.
const adminTime = 10 * time.Second

// Transfer asks for another leader: the server named, or the best one if there is no
// name. It says who leads then.
func (n *Node) Transfer(ctx context.Context, to string) (leader string, err error) {
	var answer struct {
		Leader string `json:"leader"`
	}
	err = n.askWithin(ctx, adminTime, "POST", "/v1/transfer", map[string]any{"to": to}, &answer)
	return answer.Leader, err
}

// Remove asks that a server, by its name or id, be none any more.
func (n *Node) Remove(ctx context.Context, server string) error {
	return n.askWithin(ctx, adminTime, "POST", "/v1/remove", map[string]any{"node": server}, nil)
}

var errNoLeader = errors.New("no node leads")

// Voters are the servers with votes, as the leader says.
func (c *Cluster) Voters(ctx context.Context) ([]Server, error) {
	lead, _ := c.Leader(ctx)
	if lead == nil {
		return nil, errNoLeader
	}
	s, err := lead.Status(ctx, false)
	if err == nil && s.Role != "leader" {
		err = errNoLeader
	}
	return slices.DeleteFunc(s.Servers, func(v Server) bool { return !v.Voter }), err
}

// AwaitServers waits until every node, and nobody else, is a server with a vote.
func (c *Cluster) AwaitServers(ctx context.Context) error {
	return await(ctx, "every node to have a vote", func() error {
		voters, err := c.Voters(ctx)
		if err == nil && len(voters) != len(c.Nodes) {
			err = fmt.Errorf("the voters are %v", voters)
		}
		for _, n := range c.Nodes {
			if err == nil && !slices.ContainsFunc(voters, func(s Server) bool { return s.Addr == n.Peer() }) {
				err = fmt.Errorf("%s is none of the voters %v", n.Name, voters)
			}
		}
		return err
	})
}

// Await waits until a condition holds: check returns nil.
func Await(ctx context.Context, what string, check func() error) error {
	return await(ctx, what, check)
}
