package cluster

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// suspectEvery bounds how often a node may call an election by itself.
	suspectEvery = 5 * time.Second

	// candidateGap lies between the candidacies of different voters, so that they
	// do not split the vote: time enough for an election on a busy machine.
	candidateGap = 150 * time.Millisecond
)

// suspects remembers when this node last called an election.
type suspects struct {
	mu   sync.Mutex
	last time.Time
}

// suspect is told that a server's process has died: its connections were reset
// and nobody listens where it did, or another process does. If it was the leader,
// there is no point in waiting for its heartbeats to fail: the voters stand for
// election at once, in the order of their ids, by sending themselves the message
// with which a leader hands over. A wrong guess costs an election and nothing else;
// safety is Raft's, as ever.
//
// A voter whose log is behind can't win; the next one stands a moment later.
func (n *Node) suspect(id string) {
	if n.raft == nil || n.leader().ID != id {
		return
	}
	rank := -1
	var voters []string
	for _, s := range n.voters() {
		if s.Suffrage == raft.Voter && string(s.ID) != id {
			voters = append(voters, string(s.ID))
		}
	}
	slices.Sort(voters)
	rank = slices.Index(voters, n.id)
	if rank < 0 || !n.suspects.allow() {
		return
	}
	n.run(func() { n.stand(id, time.Duration(rank)*candidateGap) })
}

func (s *suspects) allow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && time.Since(s.last) < suspectEvery {
		return false
	}
	s.last = time.Now()
	return true
}

// stand makes this node a candidate after the delay, unless another leads by then.
func (n *Node) stand(dead string, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-n.ctx.Done():
		return
	case <-timer.C:
	}
	if _, id := n.raft.LeaderWithID(); id != "" && string(id) != dead || n.raft.State() != raft.Follower {
		return
	}
	n.log.Info("the leader's process has died: standing for election", "leader", dead)
	n.campaign()
}

// standAlone makes the only voter of a cluster its leader at once: there is nobody
// whose heartbeat could be waited for.
func (n *Node) standAlone() {
	if v := n.voters(); len(v) == 1 && string(v[0].ID) == n.id {
		n.campaign()
	}
}

// campaign makes this node a candidate now.
func (n *Node) campaign() {
	var resp raft.TimeoutNowResponse
	self := raft.ServerID(n.id)
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(self),
		Addr:            n.trans.EncodePeer(self, raft.ServerAddress(n.addr)),
	}}
	if err := n.trans.TimeoutNow(self, raft.ServerAddress(n.addr), req, &resp); err != nil {
		n.log.Warn("could not stand for election; the usual time-out will do it", "error", err)
	}
}
