package cluster

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/hashicorp/raft"
)

// voteTransport is Raft's transport, with elections that do not fail for the sake
// of a stale connection. The transport keeps idle connections, and learns only by
// using one that the peer has restarted since; Raft does not repeat a vote it
// could not ask for, and would lose a whole election timeout over it. A vote may be
// asked for twice: the voter answers the same.
type voteTransport struct {
	*raft.NetworkTransport
	ctx context.Context // of the node
}

// RequestVote implements raft.Transport.
func (t voteTransport) RequestVote(id raft.ServerID, addr raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return overFresh(func() error { return t.NetworkTransport.RequestVote(id, addr, req, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t voteTransport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return overFresh(func() error { return t.NetworkTransport.RequestPreVote(id, addr, req, resp) })
}

// TimeoutNow implements raft.Transport.
func (t voteTransport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return overFresh(func() error { return t.NetworkTransport.TimeoutNow(id, addr, req, resp) })
}

// overFresh repeats a call while it meets broken connections. Each failure takes
// one out of the pool, so the last try is over a new one.
func overFresh(call func() error) error {
	err := call()
	for range raftPool {
		if err == nil || !brokenConn(err) {
			return err
		}
		err = call()
	}
	return err
}

func brokenConn(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}
