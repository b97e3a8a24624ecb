package cluster

import (
	"encoding/json"
	"fmt"

	"github.com/lockerd/lockerd/fsm"
)

// OrderRequest is the body of POST /v1/orders.
type OrderRequest struct {
	Action      string          `json:"action"`                 // freeze, fsfreeze, checkpoint or restart
	Spec        json.RawMessage `json:"spec"`                   // what, for the nodes' executors
	Nodes       []string        `json:"nodes,omitempty"`        // by name
	All         bool            `json:"all,omitempty"`          // all servers and agents, instead of Nodes; refused if one is out of touch. An agent that was given up (Config.NodeGrace) is left out
	TimeoutMS   int64           `json:"timeout_ms,omitempty"`   // 0: 60 s; negative: none
	WithinMS    uint64          `json:"within_ms,omitempty"`    // for all nodes to have done it, once all are ready; 0: 60 s
	Attached    bool            `json:"attached,omitempty"`     // ends with this request's connection
	Fence       uint64          `json:"fence,omitempty"`        // of a hold: the order ends with it
	ReleaseLock bool            `json:"release_lock,omitempty"` // and that hold is released when the order is closed
}

// OrderInfo describes an order. Times are replicated time in milliseconds, as in
// the rest of the API; those of what has not happened are missing.
type OrderInfo struct {
	ID     uint64          `json:"id"`
	Action string          `json:"action"`
	Spec   json.RawMessage `json:"spec,omitempty"`
	By     string          `json:"by"`

	State      string      `json:"state"`                 // preparing, freezing, frozen, thawing or closed
	Reason     string      `json:"reason,omitempty"`      // why it has ended: see [OrderReasons]
	ReasonText string      `json:"reason_text,omitempty"` // the same as a sentence
	Nodes      []OrderNode `json:"nodes"`

	OpenedMS  uint64 `json:"opened_ms"`
	FrozenMS  uint64 `json:"frozen_ms,omitempty"`
	EndedMS   uint64 `json:"ended_ms,omitempty"`
	SpreadMS  uint64 `json:"spread_ms"`  // between the first and the last node's word that it is frozen
	TimeoutMS int64  `json:"timeout_ms"` // from the moment that all are ready; -1: none

	// DeadlineMS is when the table ends the order by itself: while the nodes prepare, and
	// freeze, because they take too long for that; then because its timeout is over. Missing
	// if it has none, or has ended. LeftMS is the time until then, as of this record: never
	// below 0, and missing with DeadlineMS. Each node counts the timeout on a clock of its
	// own as well, from when it froze there, and may thaw that much earlier.
	DeadlineMS uint64  `json:"deadline_ms,omitempty"`
	LeftMS     *uint64 `json:"left_ms,omitempty"`

	Attached    bool   `json:"attached,omitempty"`
	Fence       uint64 `json:"fence,omitempty"`
	ReleaseLock bool   `json:"release_lock,omitempty"`
}

// OrderNode is one node's part of an order.
type OrderNode struct {
	Node   string `json:"node"`
	State  string `json:"state"`           // preparing, ready, frozen, failed or thawed; unknown if the node is out of touch and has not said that it has thawed
	Text   string `json:"text,omitempty"`  // what is frozen, or why it failed
	TookMS uint64 `json:"took_ms"`         // to freeze
	Cause  string `json:"cause,omitempty"` // of a thaw: asked, deadline, quorum, guard, stopping, gone or local
}

// OrderReasons are the values of OrderInfo.Reason.
var OrderReasons = []string{
	"thawed",    // somebody asked
	"deadline",  // its time was over
	"requester", // who had asked has gone
	"failed",    // a node could not
	"node away", // a node is out of touch
	"node gone", // a node is given up, or was started anew
	"node left", // a node was stopped or removed
	"quorum",    // a node lost touch with the quorum, and has thawed by itself
	"lock",      // the hold that it stands under has ended
}

// partUnknown is the state of a part of which nobody can know.
const partUnknown = "unknown"

// ThawRequest is the body of POST /v1/orders/thaw: which orders are to end. One of ID,
// Node and All is set; Action, if it is, leaves out the orders of others.
type ThawRequest struct {
	ID     uint64 `json:"id,omitempty"`
	Node   string `json:"node,omitempty"`
	All    bool   `json:"all,omitempty"`
	Action string `json:"action,omitempty"`
}

// OrderList is the answer to GET /v1/orders and to POST /v1/orders/thaw.
type OrderList struct {
	Orders []OrderInfo `json:"orders"` // by id
}

// nodesAway are the nodes of a table that are out of touch.
func nodesAway(m *fsm.Machine) map[fsm.Incarnation]bool {
	away := make(map[fsm.Incarnation]bool)
	for _, node := range m.Nodes() {
		if node.Away {
			away[node.Incarnation] = true
		}
	}
	return away
}

// orderInfo describes an order of the table. What a node that is out of touch has frozen
// may be thawed or not: it does so by itself, and has not said so.
//
// It is now, in replicated time, as far as that is known.
func orderInfo(o *fsm.Order, away map[fsm.Incarnation]bool, now fsm.Millis) OrderInfo {
	i := OrderInfo{
		ID: uint64(o.ID), Action: o.Action, Spec: specOf(o), By: o.By,
		State: o.State.String(), Nodes: make([]OrderNode, 0, len(o.Parts)),
		OpenedMS: uint64(o.Opened), FrozenMS: uint64(o.Frozen), EndedMS: uint64(o.Ended), TimeoutMS: -1,
		Attached: o.Requester != 0, Fence: uint64(o.Fence), ReleaseLock: o.ReleaseLock,
	}
	if o.Timeout != 0 {
		i.TimeoutMS = int64(o.Timeout)
	}
	if at, ok := o.Deadline(); ok {
		left := uint64(at - min(at, now))
		i.DeadlineMS, i.LeftMS = uint64(at), &left
	}
	if o.Frozen != 0 {
		i.SpreadMS = uint64(o.Frozen - o.First)
	}
	if o.IsOver() {
		i.Reason, i.ReasonText = o.Reason.String(), reasonText(o)
	}
	for _, p := range o.Parts {
		n := OrderNode{Node: p.Name, State: p.State.String(), Text: p.Text, TookMS: uint64(p.Took)}
		if away[p.Node] && p.State < fsm.PartFailed {
			n.State = partUnknown
		}
		if p.Cause != fsm.ThawNone {
			n.Cause = p.Cause.String()
		}
		i.Nodes = append(i.Nodes, n)
	}
	return i
}

// specOf is what an order is about, as JSON: what is none is told as a string.
func specOf(o *fsm.Order) json.RawMessage {
	switch {
	case len(o.Spec) == 0:
		return nil
	case json.Valid(o.Spec):
		return o.Spec
	}
	return mustJSON(string(o.Spec))
}

// stateOf reads the name of a state; one that is not known is before all.
func stateOf(name string) fsm.OrderState {
	s := fsm.OrderClosed
	for s > fsm.OrderPreparing && s.String() != name {
		s--
	}
	return s
}

// reasonText says why an order has ended.
func reasonText(o *fsm.Order) string {
	switch o.Reason {
	case fsm.OrderThawed:
		return "thawed by " + o.Who
	case fsm.OrderDeadline:
		if o.Who != "" {
			return "its time was over, as counted by node " + o.Who
		}
		return "its time was over"
	case fsm.OrderRequester:
		if o.Who != "" {
			return fmt.Sprintf("node %s, by which it was asked for, has gone", o.Who)
		}
		return "who had asked for it has gone"
	case fsm.OrderFailed:
		if o.Who != "" {
			return fmt.Sprintf("node %s: %s", o.Who, o.Text)
		}
		return o.Text
	case fsm.OrderNodeAway:
		return fmt.Sprintf("node %s is out of touch", o.Who)
	case fsm.OrderNodeGone:
		return fmt.Sprintf("node %s was given up, or started anew", o.Who)
	case fsm.OrderNodeLeft:
		return fmt.Sprintf("node %s was stopped or removed", o.Who)
	case fsm.OrderQuorum:
		return fmt.Sprintf("node %s lost touch with the quorum, and has thawed by itself", o.Who)
	case fsm.OrderLock:
		return fmt.Sprintf("the lock has ended under which it stood, the hold with fence %d", o.Fence)
	}
	return ""
}
