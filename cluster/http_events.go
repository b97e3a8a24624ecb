package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

const (
	maxWatches = 64   // event streams at a time
	watchAhead = 4096 // events that a reader may be behind

	// watchPulse is how often an idle stream carries an empty line, so that either
	// end can tell an idle stream from a dead connection.
	watchPulse = 10 * time.Second

	// watchWrite is how long a reader may keep one write waiting.
	watchWrite = 10 * time.Second
)

// events answers GET /v1/events[?lock=NAME]: one JSON object a line for what
// happens from now on, as this server's replica learns it, and an empty line from
// time to time. The last line of a stream that the server ends is {"error": ...}.
func (p *webPort) events(w http.ResponseWriter, r *http.Request) {
	lock := r.URL.Query().Get("lock")
	if err := p.hasEvents(r.Context()); err != nil {
		fail(w, http.StatusNotImplemented, err)
		return
	}
	select {
	case p.watches <- struct{}{}:
		defer func() { <-p.watches }()
	default:
		failNode(w, fmt.Errorf("%d watchers are here already: try another node", maxWatches))
		return
	}
	ch, cancel := p.node.Subscribe(watchAhead)
	defer cancel()

	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	// The reader learns at once that it is heard from here on.
	if stretch(out) != nil || out.Flush() != nil {
		return
	}
	pulse := time.NewTicker(watchPulse)
	defer pulse.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-pulse.C:
			if stretch(out) != nil {
				return
			}
			if _, err := w.Write([]byte("\n")); err != nil {
				return
			}
		case e, ok := <-ch:
			if stretch(out) != nil {
				return
			}
			if !ok {
				_ = enc.Encode(failure{"events were lost: this reader fell behind, this server was sent a snapshot, or it stops; watch again"})
				return
			}
			if lock != "" && !slices.Contains(e.Locks, lock) {
				continue
			}
			if enc.Encode(lineOf(e)) != nil {
				return
			}
			if len(ch) > 0 {
				continue // more to come: one flush will do
			}
		}
		if out.Flush() != nil {
			return
		}
	}
}

// stretch gives the next write its own time; the server's is for whole answers.
func stretch(out *http.ResponseController) error {
	return out.SetWriteDeadline(time.Now().Add(watchWrite))
}

func (p *webPort) hasEvents(ctx context.Context) error {
	s, err := p.node.Report(ctx, false)
	if err != nil {
		return err
	}
	if s.Role == "agent" {
		return errors.New("an agent has no table to watch: ask a server")
	}
	return nil
}

// eventInfo describes an event to watchers.
type eventInfo struct {
	Kind    string     `json:"kind"` // granted, queued, released, suspended, withdrawn, superseded, renewed, away or back
	Locks   []string   `json:"locks"`
	Owner   string     `json:"owner"`
	Fence   fsm.Fence  `json:"fence,omitempty"`
	Ticket  fsm.Ticket `json:"ticket,omitempty"`
	Mode    string     `json:"mode"`
	Host    string     `json:"host,omitempty"`
	PID     int32      `json:"pid,omitempty"`
	Cause   string     `json:"cause,omitempty"`   // why a hold or a wait ended
	By      string     `json:"by,omitempty"`      // who broke, suspended or resumed it
	Context string     `json:"context,omitempty"` // where the job of a suspended hold is
	At      fsm.Millis `json:"at_ms"`             // replicated time
}

func eventInfoOf(e fsm.Event) eventInfo {
	i := eventInfo{
		Kind: e.Kind.String(), Locks: e.Locks, Owner: e.Owner, Fence: e.Fence, Ticket: e.Ticket,
		Mode: e.Mode.String(), Host: e.Process.Host, PID: e.Process.PID, By: e.By, Context: e.Context, At: e.At,
	}
	if e.Cause != fsm.CauseNone {
		i.Cause = e.Cause.String()
	}
	return i
}

// orderEventInfo describes an event of an order to watchers.
type orderEventInfo struct {
	Kind   string     `json:"kind"` // order-opened, order-freezing, order-frozen, order-ended or order-closed
	Order  uint64     `json:"order"`
	Action string     `json:"action"`
	Nodes  []string   `json:"nodes"`
	By     string     `json:"by"` // who asked for it
	Reason string     `json:"reason,omitempty"`
	Text   string     `json:"reason_text,omitempty"`
	At     fsm.Millis `json:"at_ms"` // replicated time
}

// lineOf is what watchers are told of an event.
func lineOf(e fsm.Event) any {
	if !e.OfOrder() {
		return eventInfoOf(e)
	}
	i := orderEventInfo{
		Kind: e.Kind.String(), Order: uint64(e.Order.ID), Action: e.Order.Action, By: e.Order.By, At: e.At,
	}
	for _, p := range e.Order.Parts {
		i.Nodes = append(i.Nodes, p.Name)
	}
	if e.Order.IsOver() {
		i.Reason, i.Text = e.Order.Reason.String(), reasonText(e.Order)
	}
	return i
}
