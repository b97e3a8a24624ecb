package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
)

// States of an order, of which the others come before: see the API of package cluster.
const (
	stateFrozen  = "frozen"
	stateThawing = "thawing"
	stateClosed  = "closed"
)

// asked is the cause of a thaw that was asked for, and the reason of such an end.
const (
	causeAsked   = "asked"
	reasonThawed = "thawed"
)

// orderRequest is the body of POST /v1/orders.
type orderRequest struct {
	Action      string   `json:"action"`
	Spec        any      `json:"spec"`
	Nodes       []string `json:"nodes,omitempty"`
	All         bool     `json:"all,omitempty"`
	Timeout     int64    `json:"timeout_ms"` // less than 0 for none
	Within      int64    `json:"within_ms,omitempty"`
	Attached    bool     `json:"attached,omitempty"`
	Fence       uint64   `json:"fence,omitempty"`
	ReleaseLock bool     `json:"release_lock,omitempty"`
}

// order is what the nodes' table has of one. Times are in milliseconds.
type order struct {
	ID       uint64          `json:"id"`
	Action   string          `json:"action"`
	Spec     json.RawMessage `json:"spec"`
	By       string          `json:"by"`
	State    string          `json:"state"`
	Reason   string          `json:"reason"`
	Why      string          `json:"reason_text"`
	Nodes    []orderNode     `json:"nodes"`
	Spread   int64           `json:"spread_ms"`
	Timeout  int64           `json:"timeout_ms"` // -1: none
	Left     *int64          `json:"left_ms,omitempty"`
	Attached bool            `json:"attached"`
	Fence    uint64          `json:"fence"`
	Error    string          `json:"error"` // of the last line of a stream that the node ended

	told json.RawMessage // as the node tells of it
}

// UnmarshalJSON keeps what it was made from: whatever command an order is shown by, all
// that the node says of it is.
func (o *order) UnmarshalJSON(b []byte) error {
	type fields order
	if err := json.Unmarshal(b, (*fields)(o)); err != nil {
		return err
	}
	o.told = bytes.Clone(b)
	return nil
}

// MarshalJSON gives an order as the node tells of it.
func (o order) MarshalJSON() ([]byte, error) {
	if o.told != nil {
		return o.told, nil
	}
	type fields order
	return json.Marshal(fields(o))
}

type orderList struct {
	Orders []order `json:"orders"`
}

type orderNode struct {
	Node  string `json:"node"`
	State string `json:"state"`
	Text  string `json:"text"`
	Took  int64  `json:"took_ms"`
	Cause string `json:"cause"`
}

func (o *order) over() bool { return o.State == stateThawing || o.State == stateClosed }

func (o *order) why() string { return plain(cmp.Or(o.Why, o.Reason, "nobody says why")) }

func (o *order) nodes() string {
	var all []string
	for _, n := range o.Nodes {
		all = append(all, n.Node)
	}
	return names(all)
}

// held says whether everything was frozen until it was thawed because somebody had
// asked for that: nil, or what came before. A node that was out of touch may have
// thawed before the others heard of it.
func (o *order) held() error {
	if o.Reason != reasonThawed {
		return fmt.Errorf("%w: order %d: %s", errThawed, o.ID, o.why())
	}
	for _, n := range o.Nodes {
		if n.Cause != causeAsked {
			return fmt.Errorf("%w: order %d: %s had thawed by itself: %s", errThawed, o.ID, plain(n.Node), plain(cmp.Or(n.Cause, "it does not say why")))
		}
	}
	return nil
}

// lasted says of an order whose thaw was asked for whether everything was frozen until
// that was asked. Before is its state then, empty if it was not open; it may be named by
// its number.
func (o *order) lasted(before string, byID bool) error {
	switch {
	case o.Reason != reasonThawed, before == stateThawing, before == stateClosed, before == "" && byID:
		return fmt.Errorf("%w: order %d was over before: %s", errThawed, o.ID, o.why())
	case before != stateFrozen:
		return fmt.Errorf("%w: order %d was not frozen yet", errThawed, o.ID)
	case o.State != stateClosed:
		return fmt.Errorf("%w, as far as is known: order %d: not all its nodes have said that they have thawed", errThawed, o.ID)
	}
	return o.held()
}

// adminSocket is where a lockerd serves those who may freeze, if it is not told: in
// the directory for such things of the service, of root, or of the user. Empty if
// there is none. Command lockerd has the same rule.
func adminSocket(uid int, getenv func(string) string) string {
	if v := getenv("LOCKERD_ADMIN"); v != "" && v != "off" {
		return v
	}
	dir := "/run"
	if uid != 0 {
		if dir = getenv("XDG_RUNTIME_DIR"); !filepath.IsAbs(dir) {
			return ""
		}
	}
	return filepath.Join(dir, "lockerd", "admin.sock")
}

// orderStream is the life of an order, as the node tells of it line by line.
type orderStream struct {
	orders chan order // closed at the end
	err    error      // why, once orders is closed: io.EOF if the order's life is told
	cancel context.CancelFunc
}

// followOrder opens an order. If it is an attached one, close ends it.
func (p *program) followOrder(ctx context.Context, req orderRequest) (*orderStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := p.open(ctx, http.MethodPost, "/v1/orders", nil, req)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &orderStream{orders: make(chan order), cancel: cancel}
	go func() {
		defer close(s.orders)
		defer resp.Body.Close()
		s.err = s.read(ctx, p, resp.Body)
	}()
	return s, nil
}

func (s *orderStream) read(ctx context.Context, p *program, body io.Reader) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue // a sign of life
		}
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("%w from %s that lockctl understands: %w", errNoAnswer, p.where(), err)
		}
		if o.Error != "" {
			return fmt.Errorf("%w any more from %s: %s", errNoAnswer, p.where(), o.Error)
		}
		select {
		case s.orders <- o:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := lines.Err(); err != nil {
		return p.noAnswer(ctx, err)
	}
	return io.EOF
}

func (s *orderStream) close() {
	s.cancel()
	for range s.orders { // until the reader has gone
	}
}

// ended is the error for a stream that is over though the order is not.
func (s *orderStream) ended(p *program) error {
	if s.err == io.EOF {
		return p.noAnswer(context.Background(), io.ErrUnexpectedEOF)
	}
	return s.err
}
