package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// maxServerName bounds what an operator may call a server: a host's name and a port.
const maxServerName = 512

// TransferRequest is the body of POST /v1/transfer.
type TransferRequest struct {
	To string `json:"to"` // name, id or peer address; "" is the best one
}

// TransferAnswer says who leads, once that one is in office.
type TransferAnswer struct {
	Leader string `json:"leader"`
}

// transfer answers POST /v1/transfer.
func (p *webPort) transfer(w http.ResponseWriter, r *http.Request) {
	var req TransferRequest
	if code, err := readJSON(r, &req); err != nil {
		fail(w, code, err)
		return
	}
	if len(req.To) > maxServerName {
		fail(w, http.StatusBadRequest, fmt.Errorf("a server's name has at most %d bytes", maxServerName))
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), httpWait, fmt.Errorf("no answer within %v", httpWait))
	defer cancel()
	leader, err := p.node.Transfer(ctx, req.To)
	p.log.Info("transfer", "to", req.To, "from", r.RemoteAddr, "leader", leader, "error", err)
	if err != nil {
		failAdmin(w, err)
		return
	}
	answer(w, http.StatusOK, TransferAnswer{Leader: leader})
}

// RemoveRequest is the body of POST /v1/remove.
type RemoveRequest struct {
	Node  string `json:"node"`            // name, id or peer address
	Force bool   `json:"force,omitempty"` // the servers that are left need not be in touch
}

// remove answers POST /v1/remove.
func (p *webPort) remove(w http.ResponseWriter, r *http.Request) {
	var req RemoveRequest
	if code, err := readJSON(r, &req); err != nil {
		fail(w, code, err)
		return
	}
	switch {
	case req.Node == "":
		fail(w, http.StatusBadRequest, errors.New("which server? name it in \"node\""))
		return
	case len(req.Node) > maxServerName:
		fail(w, http.StatusBadRequest, fmt.Errorf("a server's name has at most %d bytes", maxServerName))
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), httpWait, fmt.Errorf("no answer within %v", httpWait))
	defer cancel()
	s, err := p.node.Remove(ctx, req.Node, req.Force)
	p.log.Info("remove", "node", req.Node, "force", req.Force, "from", r.RemoteAddr, "id", s.ID, "error", err)
	if err != nil {
		failAdmin(w, err)
		return
	}
	answer(w, http.StatusOK, s)
}

// failAdmin answers that an operator's command is not done: for good, or at present.
func failAdmin(w http.ResponseWriter, err error) {
	var no Refusal
	if errors.As(err, &no) {
		fail(w, http.StatusConflict, no)
		return
	}
	failNode(w, err)
}
