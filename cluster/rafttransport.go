package cluster

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/hashicorp/raft"
)

// raftTransport is Raft's transport. What it adds:
//
// A connection is for one server and no other. Raft goes by addresses, and a server
// that has lost its data comes back at its address as another one: if that were to
// answer in the name of the old one, it would vote again in terms in which that one
// had voted, and acknowledge a log that it does not have.
//
// A server is where gossip says that it is, in case it has moved.
//
// Elections do not fail for the sake of a stale connection. The transport keeps idle
// connections, and learns only by using one that the peer has restarted since; Raft
// does not repeat a vote it could not ask for, and would lose a whole election timeout
// over it. A vote may be asked for twice: the voter answers the same.
type raftTransport struct {
	*raft.NetworkTransport
	ctx   context.Context // of the node
	place func(raft.ServerID, raft.ServerAddress) raft.ServerAddress
}

// to is where Raft's connections to a server lead, for [raftLayer.Dial].
func (t raftTransport) to(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	return joinTarget(id, t.place(id, addr))
}

// AppendEntries implements raft.Transport.
func (t raftTransport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.NetworkTransport.AppendEntries(id, t.to(id, addr), req, resp)
}

// InstallSnapshot implements raft.Transport.
func (t raftTransport) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.NetworkTransport.InstallSnapshot(id, t.to(id, addr), req, resp, data)
}

// RequestVote implements raft.Transport.
func (t raftTransport) RequestVote(id raft.ServerID, addr raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return overFresh(func() error { return t.NetworkTransport.RequestVote(id, t.to(id, addr), req, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t raftTransport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return overFresh(func() error { return t.NetworkTransport.RequestPreVote(id, t.to(id, addr), req, resp) })
}

// TimeoutNow implements raft.Transport.
func (t raftTransport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return overFresh(func() error { return t.NetworkTransport.TimeoutNow(id, t.to(id, addr), req, resp) })
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
