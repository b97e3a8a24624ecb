package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakeFreezer is a node as the commands for orders see it. What happens to an order is
// said by the names of its nodes:
//
//	refuses   the order is not taken
//	fails     the node cannot prepare
//	brief     the time is up as soon as all is frozen
//	lonely    the node has thawed by itself when it is asked to
//	dies      the connection breaks when all is frozen
//	crashes   it breaks while the nodes get ready, and so does the next one for a thaw
type fakeFreezer struct {
	mu      sync.Mutex
	orders  map[uint64]*fakeOrder
	crashed bool
}

type fakeOrder struct {
	order
	thaw chan string // the reason
}

// all sets what its nodes do.
func (o *fakeOrder) all(state, cause string) {
	for i := range o.Nodes {
		o.Nodes[i].State, o.Nodes[i].Text, o.Nodes[i].Took, o.Nodes[i].Cause = state, "something", 3, cause
		if cause == causeAsked && o.Nodes[i].Node == "lonely" {
			o.Nodes[i].Cause = "quorum"
		}
	}
}

func (f *fakeFreezer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/orders":
		f.open(w, r)
	case "POST /v1/orders/thaw":
		f.mu.Lock()
		crashed := f.crashed
		f.crashed = false
		f.mu.Unlock()
		if crashed {
			panic(http.ErrAbortHandler)
		}
		f.end(w, r)
	case "GET /v1/status":
		fmt.Fprint(w, `{"name":"n1","role":"leader","ready":true,"executors":true}`)
	case "GET /v1/orders":
		f.mu.Lock()
		defer f.mu.Unlock()
		all := []order{}
		for id := uint64(1); id <= uint64(len(f.orders)); id++ {
			if o := f.orders[id]; r.URL.Query().Get("all") == "1" || o.State != stateClosed {
				all = append(all, o.order)
			}
		}
		json.NewEncoder(w).Encode(orderList{all})
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeFreezer) open(w http.ResponseWriter, r *http.Request) {
	var req struct {
		orderRequest
		Spec json.RawMessage `json:"spec"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.Spec) == 0 {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":"%v"}`, err)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body) // to its end, before which nobody sees the client go
	is := func(name string) bool { return slices.Contains(req.Nodes, name) }
	if is("refuses") {
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"error":"refuses is no node of the cluster"}`)
		return
	}
	o := &fakeOrder{thaw: make(chan string, 1)}
	o.order = order{Action: req.Action, Spec: req.Spec, By: "root@here", Timeout: req.Timeout, Attached: req.Attached}
	if req.Timeout > 0 {
		o.Left = &req.Timeout // its clock stands still
	}
	f.mu.Lock()
	o.ID = uint64(len(f.orders) + 1)
	f.orders[o.ID] = o
	f.mu.Unlock()
	if req.All {
		req.Nodes = []string{"n1", "n2"}
	}
	for _, n := range req.Nodes {
		o.Nodes = append(o.Nodes, orderNode{Node: n})
	}
	line := func(state string, change func()) {
		f.mu.Lock()
		o.State = state
		change()
		b, _ := json.Marshal(o.order)
		f.mu.Unlock()
		fmt.Fprintf(w, "%s\n\n", b)
		http.NewResponseController(w).Flush()
	}
	nodes := o.all
	line("preparing", func() {})
	if is("crashes") && !req.Attached {
		f.mu.Lock()
		f.crashed = true
		f.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	if is("fails") {
		line(stateClosed, func() { o.Reason, o.Why = "failed", "fails: executors are off" })
		return
	}
	line("freezing", func() {})
	if is("brief") && !req.Attached {
		f.mu.Lock()
		o.State = stateFrozen
		b, _ := json.Marshal(o.order)
		o.State, o.Reason, o.Why = stateClosed, "deadline", "its time was over"
		f.mu.Unlock()
		fmt.Fprintf(w, "%s\n", b)
		return
	}
	line(stateFrozen, func() { o.Spread = 4; nodes("frozen", "") })
	switch {
	case is("dies"):
		f.mu.Lock()
		o.State, o.Reason = stateClosed, "requester"
		f.mu.Unlock()
		panic(http.ErrAbortHandler)
	case is("brief"):
		o.thaw <- "deadline"
	case !req.Attached:
		return
	}
	select {
	case reason := <-o.thaw:
		line(stateThawing, func() { o.Reason = reason })
		line(stateClosed, func() { nodes("thawed", map[string]string{"deadline": "deadline", reasonThawed: causeAsked}[reason]) })
	case <-r.Context().Done():
		line(stateClosed, func() { o.Reason = "requester" })
	}
}

func (f *fakeFreezer) end(w http.ResponseWriter, r *http.Request) {
	var req thawRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	f.mu.Lock()
	defer f.mu.Unlock()
	ended := []order{}
	for id := uint64(1); id <= uint64(len(f.orders)); id++ {
		o := f.orders[id]
		concerns := req.All || req.ID == o.ID || slices.ContainsFunc(o.Nodes, func(n orderNode) bool { return n.Node == req.Node })
		if !concerns || o.State != stateFrozen && req.ID == 0 || req.Action != "" && req.Action != o.Action {
			continue
		}
		switch {
		case o.State != stateFrozen: // its record is the answer
		case o.Attached:
			o.thaw <- reasonThawed
		default:
			o.State, o.Reason = stateClosed, reasonThawed
			o.all("thawed", causeAsked)
		}
		ended = append(ended, o.order)
	}
	json.NewEncoder(w).Encode(orderList{ended})
}

// serveFreezer serves a fake on a socket, until the test ends.
func serveFreezer(path string, cleanup func(func())) error {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: &fakeFreezer{orders: map[uint64]*fakeOrder{}}}
	go s.Serve(ln)
	cleanup(func() { s.Close() })
	return nil
}

// An order is shown as the node tells of it, also what lockctl does not know of.
func TestOrderAsTold(t *testing.T) {
	const told = `{"id":3,"spec":{"mounts":["/a<b"]},"nodes":[{"node":"n1","state":"frozen","took_ms":0,"new":1}],"opened_ms":5,"timeout_ms":-1}`
	var o order
	if err := json.Unmarshal([]byte(told), &o); err != nil || o.ID != 3 || o.Timeout != -1 {
		t.Fatalf("%+v, %v", o, err)
	}
	b, err := json.Marshal(orderList{[]order{o}})
	if err != nil || strings.ReplaceAll(string(b), `\u003c`, "<") != `{"orders":[`+told+`]}` {
		t.Errorf("%s, %v", b, err)
	}
}

// What an order has come to, judged when its command has ended.
func TestHeld(t *testing.T) {
	for _, c := range []struct {
		o    order
		want string
	}{
		{order{Reason: "thawed", Nodes: []orderNode{{Cause: "asked"}, {Cause: "asked"}}}, ""},
		{order{ID: 7, Reason: "deadline", Nodes: []orderNode{{Cause: "asked"}}}, "thawed too early: order 7: deadline"},
		{order{ID: 7, Reason: "node gone", Why: "n2 has gone"}, "thawed too early: order 7: n2 has gone"},
		{order{ID: 7, Reason: "thawed", Nodes: []orderNode{{Cause: "asked"}, {Node: "n2", Cause: "guard"}}}, "thawed too early: order 7: n2 had thawed by itself: guard"},
		{order{ID: 7, Reason: "thawed", Nodes: []orderNode{{Node: "n2"}}}, "n2 had thawed by itself: it does not say why"},
	} {
		got := ""
		if err := c.o.held(); err != nil {
			got = err.Error()
		}
		if c.want == "" && got != "" || c.want != "" && (len(got) < len(c.want) || got[len(got)-len(c.want):] != c.want) {
			t.Errorf("%+v: %q, want %q", c.o, got, c.want)
		}
	}
}

// What a thaw says of an order that it was to end.
func TestLasted(t *testing.T) {
	asked := []orderNode{{Node: "n1", Cause: "asked"}, {Node: "n2", Cause: "asked"}}
	closed := func(reason, why string, nodes []orderNode) order {
		return order{ID: 5, State: stateClosed, Reason: reason, Why: why, Nodes: nodes}
	}
	for _, c := range []struct {
		o      order
		before string
		byID   bool
		want   string
	}{
		{closed("thawed", "", asked), stateFrozen, true, ""},
		{closed("thawed", "", asked), stateFrozen, false, ""},
		{closed("thawed", "thawed by root@h", asked), "", true, "order 5 was over before: thawed by root@h"},
		{closed("thawed", "thawed by root@h", asked), stateThawing, false, "order 5 was over before: thawed by root@h"},
		{closed("deadline", "its time was over", asked), stateFrozen, true, "order 5 was over before: its time was over"},
		{closed("quorum", "", asked), "", true, "order 5 was over before: quorum"},
		{closed("thawed", "", asked), "freezing", true, "order 5 was not frozen yet"},
		{closed("thawed", "", asked), "", false, "order 5 was not frozen yet"},
		{closed("thawed", "", []orderNode{{Node: "n1", Cause: "guard"}}), stateFrozen, true, "order 5: n1 had thawed by itself: guard"},
		{order{ID: 5, State: stateThawing, Reason: "thawed", Nodes: asked}, stateFrozen, true, "as far as is known: order 5: not all its nodes have said that they have thawed"},
	} {
		err := c.o.lasted(c.before, c.byID)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, errThawed) || !strings.HasSuffix(err.Error(), c.want)) {
			t.Errorf("%+v, %q before: %v, want %q", c.o, c.before, err, c.want)
		}
	}
}

func TestAdminSocket(t *testing.T) {
	for _, c := range []struct {
		uid  int
		env  map[string]string
		want string
	}{
		{0, nil, "/run/lockerd/admin.sock"},
		{0, map[string]string{"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/lockerd/admin.sock"},
		{7, map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/lockerd/admin.sock"},
		{7, nil, ""},
		{7, map[string]string{"LOCKERD_ADMIN": "/x"}, "/x"},
		{0, map[string]string{"LOCKERD_ADMIN": "off"}, "/run/lockerd/admin.sock"},
	} {
		if got := adminSocket(c.uid, func(k string) string { return c.env[k] }); got != c.want {
			t.Errorf("%d %v: %q, want %q", c.uid, c.env, got, c.want)
		}
	}
}
