package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockerd/lockerd/fsm"
)

// What nodes say to each other, beside Raft. Each node keeps one connection to
// every server; the node that dialed makes requests, the server answers and
// pushes events. The first frames are hello and welcome.
const (
	// From the node that dialed.
	frameHello   = 'h' // peerHello as JSON
	framePing    = 'i' // the node's incarnation: proof of life; and whether it has disk space
	framePropose = 'p' // proposals for the leader
	frameAsk     = 'a' // id, method, payload
	frameAnchors = 'n' // the answer to frameWhich: id, []fsm.Fence as JSON

	// From the server.
	frameWelcome = 'w' // peerWelcome as JSON
	frameLeader  = 'l' // peerLeader as JSON, whenever it changes
	framePong    = 'o'
	frameResults = 'r' // ask, result, ...
	frameBounced = 'b' // this node does not lead: ask again elsewhere
	frameEvents  = 'e' // events that concern the node's clients
	frameReply   = 'y' // id, status, payload
	frameRemoved = 'x' // the node was removed from the cluster whose id this is
	frameGivenUp = 'g' // an incarnation that the table knows no more
	frameOrders  = 'd' // events of orders in which the node has a part, which they show alone
	frameWhich   = 'q' // id, []fsm.Fence as JSON: which of them are anchored at the agent?
)

const (
	// HeaderRaft and HeaderPeer are the first bytes that tell Raft's connections
	// from nodes' own on the peer port.
	HeaderRaft = 'R'
	HeaderPeer = 'N'

	peerProtocol = 1

	// pingLowDisk follows the incarnation in the ping of a node whose disk is nearly full.
	pingLowDisk = 1

	// maxPeerFrame bounds a frame; the largest is a whole table for an agent.
	maxPeerFrame = 256 << 20
	maxHello     = 16 << 10
)

// peerHello says who dials.
type peerHello struct {
	Protocol int    `json:"protocol"`
	Cluster  string `json:"cluster,omitempty"`
	ID       string `json:"id"`
	Name     string `json:"name"`
	Host     string `json:"host"`
	Agent    bool   `json:"agent,omitempty"`
	Version  string `json:"version"`
	Place    place  `json:"place"`
}

// peerWelcome says who answers. Boot changes with every start of that node's process.
type peerWelcome struct {
	Protocol int        `json:"protocol"`
	Cluster  string     `json:"cluster,omitempty"`
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Boot     string     `json:"boot"`
	Version  string     `json:"version"`
	Error    string     `json:"error,omitempty"`   // why the caller is turned away
	Removed  bool       `json:"removed,omitempty"` // because it was removed from the cluster
	Leader   peerLeader `json:"leader"`
	Place    place      `json:"place"`
}

// peerLeader names the leader that a server follows; ID is empty if there is none.
type peerLeader struct {
	ID   string `json:"id"`
	Addr string `json:"addr"`
	Term uint64 `json:"term"`
}

// Methods of frameAsk.
const (
	askIndex   = 'i' // linearizable read index; answered by the leader
	askStatus  = 's' // statusQuery -> fsm result
	askTable   = 't' // stale flag -> time, snapshot of the table
	askLook    = 'k' // []standing -> []standing
	askEnded   = 'e' // fsm.Fence -> fsm.Cause: why that hold has ended
	askVoters  = 'o' // -> ids of the servers with a vote
	askDead    = 'd' // fsm.Process: DEAD_PID hint
	askCharges = 'c' // place -> []charge: what ends with the processes of a place
	askAnchors = 'n' // []fsm.Fence -> those of them that are anchored at the node
	askInvite  = 'v' // invitation to found a cluster
	askHealth  = 'h' // -> health

	askTransfer = 'f' // transferQuery -> adminReply; answered by the leader
	askRemove   = 'r' // removeQuery -> adminReply; answered by the leader
	askMembers  = 'm' // -> []Member

	askOrders    = 'w' // []word -> []word; answered by the leader
	askOrderList = 'l' // with the closed ones -> []OrderInfo
	askAbsent    = 'b' // -> names of the servers that are out of touch; answered by the leader
	askFollow    = 'u' // orderQuery -> OrderInfo, or null if it is not further yet
)

// Status bytes of frameReply.
const (
	replyOK    = 0
	replyError = 1
)

type statusQuery struct {
	Owner string   `json:"owner"`
	Locks []string `json:"locks"`
}

// invitation asks a server without a cluster to take part in a new one.
type invitation struct {
	Cluster string `json:"cluster"`
	Expect  int    `json:"expect"`
}

var errPeerGarbage = errors.New("other node sent something unreadable")

func appendAnswer(dst []byte, ask fsm.Ask, res fsm.Result) []byte {
	dst = binary.AppendUvarint(dst, uint64(ask.Node))
	dst = binary.AppendUvarint(dst, ask.Seq)
	return fsm.AppendResult(dst, res)
}

// eachAnswer calls f for every answer in a frameResults.
func eachAnswer(b []byte, f func(fsm.Ask, fsm.Result)) error {
	for len(b) > 0 {
		node, n := binary.Uvarint(b)
		if n <= 0 {
			return errPeerGarbage
		}
		seq, k := binary.Uvarint(b[n:])
		if k <= 0 {
			return errPeerGarbage
		}
		res, rest, err := fsm.DecodeResult(b[n+k:])
		if err != nil {
			return fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		b = rest
		f(fsm.Ask{Node: fsm.Incarnation(node), Seq: seq}, res)
	}
	return nil
}

// decodeEvents reads a frameEvents.
func decodeEvents(b []byte) ([]fsm.Event, error) {
	var events []fsm.Event
	for len(b) > 0 {
		e, rest, err := fsm.DecodeEvent(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		events = append(events, e)
		b = rest
	}
	return events, nil
}

// uvarint reads a number off the front of b.
func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errPeerGarbage
	}
	return v, b[n:], nil
}

// mustJSON encodes values of this package's own wire types, which always can be.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	return b
}
