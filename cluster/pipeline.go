package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// AppendEntriesPipeline implements raft.Transport.
func (t raftTransport) AppendEntriesPipeline(id raft.ServerID, addr raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, t.to(id, addr))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(t.ctx, func() { _ = p.Close() })
	return &pipeline{AppendPipeline: p, stop: stop}, nil
}

// pipeline is a pipeline of Raft's that can't get stuck. When a follower's answer
// ends Raft's reading of the pipeline, the library may be about to send once more;
// nobody takes in that answer then, and the sender waits for ever: this leader
// would send that follower nothing more, and could not be shut down.
type pipeline struct {
	raft.AppendPipeline
	stop func() bool // ends the wait for the node's end
}

// AppendEntries implements raft.AppendPipeline. No answer takes longer than
// raftTimeout, and a sender waits for two answers at most.
func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	stuck := time.AfterFunc(2*raftTimeout, func() { _ = p.Close() })
	defer stuck.Stop()
	return p.AppendPipeline.AppendEntries(req, resp)
}

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.stop()
	return p.AppendPipeline.Close()
}
