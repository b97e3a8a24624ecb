package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// maxOrderStreams bounds requests that wait for orders; no more can be open.
const maxOrderStreams = fsm.MaxOpenOrders

// orders answers GET /v1/orders[?all=1].
func (p *webPort) orders(w http.ResponseWriter, r *http.Request) {
	all, err := flag(r, "all")
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	list, err := p.node.Orders(ctx, all)
	if err != nil {
		failNode(w, err)
		return
	}
	answer(w, http.StatusOK, OrderList{Orders: list})
}

// openOrder answers POST /v1/orders: a JSON object a line for each state that the order
// comes into, up to frozen, or, if it is attached, to its end. The order ends with the
// connection: an attached one always, and another one before its frozen line is written,
// as nobody would know of it.
func (p *webPort) openOrder(w http.ResponseWriter, r *http.Request) {
	by, err := p.admin(r)
	if err != nil {
		p.log.Warn("order refused", "by", stranger(r), "reason", err)
		fail(w, http.StatusForbidden, err)
		return
	}
	var req OrderRequest
	if code, err := readJSON(r, &req); err != nil {
		fail(w, code, err)
		return
	}
	select {
	case p.orderStreams <- struct{}{}:
		defer func() { <-p.orderStreams }()
	default:
		failNode(w, fmt.Errorf("%d requests wait for orders here already", maxOrderStreams))
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), httpWait, fmt.Errorf("no answer within %v", httpWait))
	id, err := p.node.OpenOrder(ctx, req, by)
	cancel()
	asked := []any{
		"action", req.Action, "by", by, "nodes", req.Nodes, "all", req.All,
		"timeout_ms", req.TimeoutMS, "within_ms", req.WithinMS, "attached", req.Attached, "fence", req.Fence,
	}
	if err != nil {
		p.refused("order", err, asked)
		failAdmin(w, err)
		return
	}
	p.log.Info("order opened", append(asked, "order", id)...)
	if !p.stream(w, r, id, req.Attached) {
		p.node.AbandonOrder(id)
	}
}

// stream tells of an order's states, and reports whether it told of the last one that it
// is to tell of.
func (p *webPort) stream(w http.ResponseWriter, r *http.Request, id uint64, attached bool) (told bool) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	// The time for requests is over; what is waited for now is the end of the connection.
	if out.SetReadDeadline(time.Time{}) != nil {
		return false
	}
	enc := json.NewEncoder(w)
	state := ""
	for {
		ctx, cancel := context.WithTimeout(r.Context(), watchPulse)
		o, err := p.node.FollowOrder(ctx, id, state)
		pulse := ctx.Err() != nil && r.Context().Err() == nil
		cancel()
		if stretch(out) != nil || r.Context().Err() != nil {
			return false
		}
		switch {
		case err != nil && pulse:
			_, err = w.Write([]byte("\n"))
		case err != nil:
			_ = enc.Encode(failure{err.Error()}) // the client may have gone: nobody to tell
			return false
		default:
			state = o.State
			err = enc.Encode(o)
		}
		if err != nil || out.Flush() != nil {
			return false
		}
		if stateOf(state) == fsm.OrderClosed || !attached && stateOf(state) == fsm.OrderFrozen {
			return true
		}
	}
}

// thawOrders answers POST /v1/orders/thaw.
func (p *webPort) thawOrders(w http.ResponseWriter, r *http.Request) {
	by, err := p.admin(r)
	if err != nil {
		p.log.Warn("thaw refused", "by", stranger(r), "reason", err)
		fail(w, http.StatusForbidden, err)
		return
	}
	var req ThawRequest
	if code, err := readJSON(r, &req); err != nil {
		fail(w, code, err)
		return
	}
	if err := req.validate(); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	list, err := p.node.Thaw(ctx, req, by)
	asked := []any{"action", req.Action, "by", by, "order", req.ID, "node", req.Node, "all", req.All}
	if err != nil {
		p.refused("thaw", err, asked)
		failAdmin(w, err)
		return
	}
	p.log.Info("thaw", append(asked, "ended", len(list))...)
	answer(w, http.StatusOK, OrderList{Orders: list})
}

// refused logs what the cluster does not do, in the words in which a node does that of its
// part, or of which nobody knows whether it does.
func (p *webPort) refused(what string, err error, asked []any) {
	text := what + " without an answer"
	if no := Refusal(""); errors.As(err, &no) {
		text = what + " refused"
	}
	p.log.Warn(text, append(asked, "reason", err)...)
}
