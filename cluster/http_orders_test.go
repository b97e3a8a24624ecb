package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/fsm"
)

// orderFarm is a real server and a real agent, each with a fake executor and its HTTP
// server on a TCP port and the admin socket.
type orderFarm struct {
	t     *testing.T
	nodes map[string]*Node
	execs map[string]*fakeExecutor
	paths map[string]string // of admin sockets
	urls  map[string]string // of HTTP ports
	log   logged            // of these and the sockets
}

// logged is what was logged.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take is what was logged since it was asked for last.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

func newOrderFarm(t *testing.T) *orderFarm {
	t.Helper()
	s := &orderFarm{
		t: t, nodes: make(map[string]*Node), execs: make(map[string]*fakeExecutor),
		paths: make(map[string]string), urls: make(map[string]string),
	}
	dir := t.TempDir()
	f := newFarm(t, 1, func(cfg *Config) { cfg.Executor = s.exec(cfg.Name) })
	server := f.nodes[0]
	f.leader()
	agent, err := Open(t.Context(), Config{
		Name: "agent", Version: "test", Agent: true, Servers: []Server{{ID: server.id, Addr: server.addr}},
		PidstatPort: -1, Logger: testLogger("agent"), Executor: s.exec("agent"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := agent.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, n := range []*Node{server, agent} {
		s.nodes[n.Name()] = n
		s.serve(n, filepath.Join(dir, n.Name()), func(*http.Server) {})
	}
	if err := waitUntil("both are in touch", func() bool {
		return len(s.nodes["n1"].tableNodes()) == 2
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// tableNodes are the names in the table of those in touch.
func (n *Node) tableNodes() (names []string) {
	n.replica.view(func(m *fsm.Machine) {
		for _, node := range m.Nodes() {
			if !node.Away {
				names = append(names, node.Name)
			}
		}
	})
	return names
}

func (s *orderFarm) exec(name string) *fakeExecutor {
	s.execs[name] = newFakeExecutor(name)
	return s.execs[name]
}

func (s *orderFarm) serve(n *Node, path string, configure func(*http.Server)) {
	s.t.Helper()
	h := httptest.NewUnstartedServer(nil)
	h.Config = NewHTTPServer(n, hclog.New(&hclog.LoggerOptions{Output: &s.log}))
	configure(h.Config)
	h.Start()
	s.t.Cleanup(h.Close)
	ln, err := ListenAdmin(path)
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = h.Config.Serve(ln) }()
	s.paths[n.Name()], s.urls[n.Name()] = path, h.URL
}

// admin is a client of a node's admin socket.
func (s *orderFarm) admin(name string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.paths[name])
		},
		DisableKeepAlives: true,
	}}
}

// post sends a request by a node's admin socket; the answer is to be closed.
func (s *orderFarm) post(ctx context.Context, name, path, body string) *http.Response {
	s.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "POST", "http://lockerd"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := s.admin(name).Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}

// order opens an order and returns what gives its records one after the other; the
// last one is followed by io.EOF.
func (s *orderFarm) order(ctx context.Context, name, body string) func() (OrderInfo, error) {
	s.t.Helper()
	resp := s.post(ctx, name, "/v1/orders", body)
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("%d %s", resp.StatusCode, b)
	}
	lines := bufio.NewReader(resp.Body)
	return func() (o OrderInfo, err error) {
		for {
			b, err := lines.ReadBytes('\n')
			if err != nil {
				return o, err
			}
			if len(b) > 1 {
				return o, json.Unmarshal(b, &o)
			}
		}
	}
}

// until reads records up to one in a state.
func until(t *testing.T, next func() (OrderInfo, error), state string) OrderInfo {
	t.Helper()
	for {
		o, err := next()
		if err != nil {
			t.Fatalf("before %s: %v", state, err)
		}
		if o.State == state {
			return o
		}
	}
}

func TestHTTPOrders(t *testing.T) {
	s := newOrderFarm(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, via := range []string{"n1", "agent"} {
		// Detached: it stays when the stream is over.
		next := s.order(ctx, via, `{"action":"freeze","spec":{"pids":[1]},"all":true}`)
		o := until(t, next, "frozen")
		if _, err := next(); err != io.EOF {
			t.Errorf("after the last line: %v", err)
		}
		if o.By == "" || !strings.Contains(o.By, "@") || string(o.Spec) != `{"pids":[1]}` || len(o.Nodes) != 2 || o.Nodes[0].Text != "3 processes" {
			t.Errorf("%+v", o)
		}
		if !s.execs["n1"].isFrozen() || !s.execs["agent"].isFrozen() {
			t.Error("not all are frozen")
		}
		// Anybody may read.
		if code, body := get(t, s.urls[via]+"/v1/orders"); code != 200 || !strings.Contains(body, `"state":"frozen"`) {
			t.Errorf("%d %s", code, body)
		}
		resp := s.post(ctx, via, "/v1/orders/thaw", `{"all":true}`)
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(string(b), `"state":"closed","reason":"thawed"`) {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
		if s.execs["n1"].isFrozen() || s.execs["agent"].isFrozen() {
			t.Error("not all are thawed")
		}
	}
	if code, body := get(t, s.urls["n1"]+"/metrics"); code != 200 || !strings.Contains(body, `lockerd_orders_ended_total{reason="thawed"} 2`) ||
		!strings.Contains(body, "lockerd_orders 0\n") {
		t.Errorf("%d %.300s", code, body)
	}
}

// TestHTTPOrderEndsWithItsConnection hangs up an attached order, and one that is not yet
// frozen, on a server and on an agent, and thaws one whose request is still there.
func TestHTTPOrderEndsWithItsConnection(t *testing.T) {
	s := newOrderFarm(t)
	events := watch(t, s.urls["n1"]+"/v1/events")
	for _, via := range []string{"n1", "agent"} {
		for _, tc := range []struct {
			state    string
			attached bool
		}{{"preparing", true}, {"frozen", true}, {"preparing", false}} {
			state, release := tc.state, func() {}
			if state == "preparing" {
				release = s.execs["agent"].hold("prepare")
			}
			ctx, hangUp := context.WithCancel(t.Context())
			until(t, s.order(ctx, via, fmt.Sprintf(`{"action":"freeze","nodes":["agent"],"attached":%v,"timeout_ms":-1}`, tc.attached)), state)
			hangUp()
			line := events()
			for !strings.Contains(line, "order-closed") {
				line = events()
			}
			if !strings.Contains(line, `"nodes":["agent"]`) || !strings.Contains(line, `"reason":"requester","reason_text":"who had asked for it has gone"`) {
				t.Errorf("%s, %s: %s", via, state, line)
			}
			release()
		}
		next := s.order(t.Context(), via, `{"action":"freeze","nodes":["n1"],"attached":true}`)
		o := until(t, next, "frozen")
		if _, err := s.nodes["agent"].Thaw(t.Context(), ThawRequest{ID: o.ID}, "ann"); err != nil {
			t.Fatal(err)
		}
		if o := until(t, next, "closed"); o.ReasonText != "thawed by ann" {
			t.Errorf("%+v", o)
		}
		if _, err := next(); err != io.EOF {
			t.Errorf("after the last line: %v", err)
		}
		for line := events(); !strings.Contains(line, "order-closed"); {
			line = events()
		}
	}
}

// TestHTTPOrderOutlastsTimeouts: the time-outs for requests and answers are not those of
// what is attached.
func TestHTTPOrderOutlastsTimeouts(t *testing.T) {
	s := newOrderFarm(t)
	const short = time.Second
	s.serve(s.nodes["n1"], filepath.Join(t.TempDir(), "short"), func(h *http.Server) {
		h.ReadTimeout, h.WriteTimeout = short, short
	})
	next := s.order(t.Context(), "n1", `{"action":"freeze","nodes":["n1"],"attached":true}`)
	o := until(t, next, "frozen")
	time.Sleep(2 * short) // the time-outs have to pass
	if _, err := s.nodes["n1"].Thaw(t.Context(), ThawRequest{ID: o.ID}, "ann"); err != nil {
		t.Fatal(err)
	}
	if o := until(t, next, "closed"); o.Reason != "thawed" {
		t.Errorf("%+v", o)
	}
}

// TestHTTPOrdersRefused: who may not, what cannot be, and what is no request.
func TestHTTPOrdersRefused(t *testing.T) {
	s := newOrderFarm(t)
	const good = `{"action":"freeze","nodes":["n1"]}`
	for _, path := range []string{"/v1/orders", "/v1/orders/thaw"} {
		if code, body := post(t, s.urls["n1"]+path, good); code != 403 || !strings.Contains(body, "the admin socket, on host ") || !strings.Contains(body, s.paths["n1"]+", as root") {
			t.Errorf("%s over TCP: %d %s", path, code, body)
		}
		wantLine(t, s.log.take(), `\[WARN\] +(order|thaw) refused: by=127\.0\.0\.1:\d+ reason="orders are for administrators: `)
	}
	for _, c := range []struct {
		path, body string
		code       int
		want       string
	}{
		{"/v1/orders", `{"action":"freeze","nodes":["n9"]}`, 409, `node \"n9\" is not in the cluster`},
		{"/v1/orders", `{"action":"freeze","nodes":["n1"],"all":true}`, 409, "names nodes, or all of them"},
		{"/v1/orders", `{"action":"freeze","nodes":["n1"],"fence":7}`, 409, "the hold with fence 7 is over"},
		{"/v1/orders", `{"action":"freeze","node":"n1"}`, 400, "node"},
		{"/v1/orders", `{"action":"freeze","nodes":["n1"],"timeout_ms":99999999999999}`, 409, "at most 365 days"},
		{"/v1/orders", `{"action":"freeze","nodes":["n1"],"timeout_ms":9223372036854775807}`, 409, "at most 365 days"},
		{"/v1/orders", `{"action":"freeze","nodes":["n1"],"timeout_ms":9223372036854775808}`, 400, "timeout_ms"},
		{"/v1/orders", `{"action":"freeze","nodes":["n1"],"within_ms":99999999999999}`, 409, "at most 365 days"},
		{"/v1/orders", ``, 400, "read the request"},
		{"/v1/orders/thaw", `{}`, 400, "which orders"},
		{"/v1/orders/thaw", `{"id":1,"all":true}`, 400, "which orders"},
		{"/v1/orders/thaw", `{"id":9}`, 409, "no order 9"},
		{"/v1/orders/thaw", `{"all":true}`, 200, `{"orders":[]}`},
	} {
		resp := s.post(t.Context(), "n1", c.path, c.body)
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || !strings.Contains(string(b), c.want) {
			t.Errorf("%s %s: %d %s, want %d with %s", c.path, c.body, resp.StatusCode, b, c.code, c.want)
		}
		switch said := s.log.take(); {
		case c.code == 409:
			wantLine(t, said, `\[WARN\] +(order|thaw) refused: .*by=\S+@\S+ .*reason="`)
		case strings.Contains(said, "refused"):
			t.Errorf("%s %s: %s", c.path, c.body, said)
		}
	}
	bare := httptest.NewUnstartedServer(nil)
	bare.Config = NewHTTPServer(s.nodes["n1"], hclog.NewNullLogger())
	bare.Start()
	defer bare.Close()
	if code, body := post(t, bare.URL+"/v1/orders", good); code != 403 || !strings.Contains(body, "this node has none") {
		t.Errorf("without a socket: %d %s", code, body)
	}
	if code, body := get(t, s.urls["n1"]+"/v1/orders?all=1"); code != 200 || body != `{"orders":[]}`+"\n" {
		t.Errorf("something was opened: %d %s", code, body)
	}
	if os.Getuid() != 0 {
		t.Log("not root: nobody else's connection can be made")
		return
	}
	// Somebody else who can reach the socket, be it by a wrong mode.
	for dir := filepath.Dir(s.paths["n1"]); dir != filepath.Clean(os.TempDir()) && len(dir) > 1; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.paths["n1"], 0o666); err != nil {
		t.Fatal(err)
	}
	conn, err := dialAs(s.paths["n1"], 65534)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /v1/orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n"+good)
	b, err2 := io.ReadAll(conn)
	if err != nil || err2 != nil || !strings.Contains(string(b), " 403 ") {
		t.Errorf("%s, %v, %v", b, err, err2)
	}
	wantLine(t, s.log.take(), `\[WARN\] +order refused: by=uid65534 reason="orders are for administrators: `)
}

// wantLine wants one line, and one like this.
func wantLine(t *testing.T, log, pattern string) {
	t.Helper()
	if strings.Count(log, "\n") != 1 || !regexp.MustCompile(pattern).MatchString(log) {
		t.Errorf("%q is logged, want %s", log, pattern)
	}
}

// TestHTTPOrderDeadline: until when an order stands is told by servers and agents, be it
// for ever.
func TestHTTPOrderDeadline(t *testing.T) {
	s := newOrderFarm(t)
	for _, via := range []string{"n1", "agent"} {
		first := until(t, s.order(t.Context(), via, `{"action":"freeze","nodes":["n1"],"timeout_ms":50000}`), "frozen")
		second := until(t, s.order(t.Context(), via, `{"action":"freeze","nodes":["agent"],"timeout_ms":-1}`), "frozen")
		list, err := s.nodes[via].Orders(t.Context(), false)
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		for i, o := range []OrderInfo{first, list[0]} {
			if o.TimeoutMS != 50_000 || o.LeftMS == nil || *o.LeftMS == 0 || *o.LeftMS > 50_000 || o.DeadlineMS <= o.OpenedMS+50_000-1 || o.DeadlineMS > o.FrozenMS+50_000 {
				t.Errorf("%s, %d: %+v", via, i, o)
			}
		}
		for i, o := range []OrderInfo{second, list[1]} {
			if o.TimeoutMS != -1 || o.LeftMS != nil || o.DeadlineMS != 0 {
				t.Errorf("%s, %d: %+v", via, i, o)
			}
		}
		if b := string(mustJSON(second)); !strings.Contains(b, `"timeout_ms":-1`) || strings.Contains(b, "left_ms") {
			t.Error(b)
		}
		ended, err := s.nodes[via].Thaw(t.Context(), ThawRequest{All: true}, "ann")
		if err != nil || len(ended) != 2 || ended[0].LeftMS != nil || ended[0].TimeoutMS != 50_000 {
			t.Errorf("%+v, %v", ended, err)
		}
	}
}

// dialAs connects to a socket as another user: the kernel notes who does. The thread
// that has become that user ends with the goroutine.
func dialAs(path string, uid int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread()
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			ch <- result{nil, err}
			return
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		if _, _, no := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); no != 0 {
			ch <- result{nil, no}
			return
		}
		if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
			ch <- result{nil, err}
			return
		}
		conn, err := net.FileConn(f)
		ch <- result{conn, err}
	}()
	r := <-ch
	return r.conn, r.err
}

func TestListenAdmin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	ln, err := ListenAdmin(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := ListenAdmin(path); err == nil || !strings.Contains(err.Error(), "in use by another lockerd") {
		t.Errorf("a second one: %v", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if ln, err = ListenAdmin(path); err != nil {
		t.Fatalf("after a dead node: %v", err)
	}
	ln.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenAdmin(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a file: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file: %v", err)
	}
}

// FuzzOrderRequest feeds what opens orders.
func FuzzOrderRequest(f *testing.F) {
	f.Add([]byte(`{"action":"freeze","spec":{"pids":[1]},"nodes":["n1"],"timeout_ms":-1,"attached":true}`))
	f.Add([]byte(`{"action":"freeze","all":true,"fence":3,"release_lock":true}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/v1/orders", strings.NewReader(string(body)))
		r.Header.Set("Content-Type", "application/json")
		var req OrderRequest
		if code, err := readJSON(r, &req); (err == nil) != (code == 0) {
			t.Fatalf("error %v with code %d", err, code)
		} else if err != nil {
			return
		}
		c, err := req.command("root@h")
		var no Refusal
		if err != nil && !errors.As(err, &no) {
			t.Fatalf("%v", err)
		}
		if err == nil && fsm.Validate(c) != nil {
			t.Fatalf("accepted %+v", c)
		}
	})
}
