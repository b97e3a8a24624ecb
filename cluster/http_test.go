package cluster

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/fsm"
)

// adminFake is a fake node with the rest of what the HTTP port asks for.
type adminFake struct {
	*fakeNode
	events *feed
	role   string
}

func (n *adminFake) Report(context.Context, bool) (Status, error) {
	c := n.counts()
	s := Status{
		Name: "n1", ID: "id1", Role: n.role, Version: "2.0", Started: n.Started(), Term: 7, Ready: true,
		Leader: "n2", LeaderID: "id2", LeaderAddr: "192.0.2.2:1753",
		Servers: []ServerStatus{{Name: "n1", ID: "id1", Reachable: true}, {Name: "<n2>", ID: "id2"}},
	}
	if n.role != "agent" {
		s.Counts = &TableCounts{Locks: c.Locks, Holds: c.Holds, Waits: c.Waits, Fence: uint64(c.Fence), Ticket: uint64(c.Ticket)}
	}
	if err := n.failure(); err != nil {
		s.Ready, s.Reason, s.LeaderID = false, err.Error(), ""
	}
	return s, nil
}

func (n *adminFake) Members(context.Context) ([]Member, error) {
	return []Member{{Name: "n1", ID: "id1", Kind: "server", Voter: true}, {Name: "farm7", ID: "id9", Kind: "agent"}}, nil
}

func (n *adminFake) Subscribe(buffer int) (<-chan fsm.Event, func()) {
	return (&Node{events: n.events}).Subscribe(buffer)
}

func (n *adminFake) Transfer(_ context.Context, to string) (string, error) {
	if to == "n9" {
		return "", Refusal("n9 is not in touch")
	}
	return cmp.Or(to, "n2"), n.failure()
}

func (n *adminFake) Remove(_ context.Context, node string, force bool) (RemovedServer, error) {
	if node == "n1" && !force {
		return RemovedServer{}, Refusal("n1 is needed")
	}
	return RemovedServer{ID: "id2", Name: node, Addr: "192.0.2.2:1753"}, n.failure()
}

func (n *adminFake) Ready(context.Context) error { return n.failure() }

// fakeWeb serves a fake node in which alice holds a, and bob and eve wait for it.
func fakeWeb(t *testing.T) (*adminFake, *httptest.Server) {
	t.Helper()
	n := &adminFake{fakeNode: newFakeNode(t), events: newFeed(), role: "follower"}
	for _, user := range []string{"alice", "bob", "eve"} {
		n.apply(fsm.Acquire{Owner: user, Locks: []string{"a"}, Block: true, Process: fsm.Process{Host: "h", PID: 4}}, nil)
	}
	n.apply(fsm.Acquire{Owner: "dan", Locks: []string{"d"}}, nil)
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewHTTPServer(n, hclog.NewNullLogger(), "lock.example")
	s.Start()
	t.Cleanup(s.Close)
	return n, s
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestHTTPHealth(t *testing.T) {
	n, s := fakeWeb(t)
	for _, c := range []struct {
		fail error
		path string
		code int
		body string
	}{
		{nil, "/healthz", 200, "ok\n"},
		{nil, "/readyz", 200, "ready\n"},
		{errFake, "/healthz", 200, "ok\n"},
		{errFake, "/readyz", 503, errFake.Error() + "\n"},
	} {
		n.fail = c.fail
		if code, body := get(t, s.URL+c.path); code != c.code || body != c.body {
			t.Errorf("%s with error %v: %d %q, want %d %q", c.path, c.fail, code, body, c.code, c.body)
		}
	}
}

func TestHTTPReads(t *testing.T) {
	n, s := fakeWeb(t)
	_, body := get(t, s.URL+"/v1/locks")
	var all struct {
		Holds   []holdInfo   `json:"holds"`
		Waiters []waiterInfo `json:"waiters"`
	}
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if len(all.Holds) != 2 || all.Holds[0].Owner != "alice" || all.Holds[0].Waiters != 2 || all.Holds[0].PID != 4 {
		t.Errorf("holds %+v", all.Holds)
	}
	if len(all.Waiters) != 2 || all.Waiters[1].Owner != "eve" || all.Waiters[1].Place != 2 {
		t.Errorf("waiters %+v", all.Waiters)
	}
	if _, body := get(t, s.URL+"/v1/locks?lock=d&stale=1"); strings.Contains(body, "alice") || !strings.Contains(body, "dan") {
		t.Errorf("locks d: %s", body)
	}
	if code, _ := get(t, s.URL+"/v1/locks?stale=perhaps"); code != 400 {
		t.Errorf("stale=perhaps: %d, want 400", code)
	}
	if _, body := get(t, s.URL+"/v1/status"); !strings.Contains(body, `"term":7`) || !strings.Contains(body, `"holds":2`) {
		t.Errorf("status: %s", body)
	}
	if _, body := get(t, s.URL+"/v1/members"); !strings.Contains(body, `"farm7"`) {
		t.Errorf("members: %s", body)
	}
	if code, _ := get(t, s.URL+"/v1/nothing"); code != 404 {
		t.Errorf("an unknown path: %d, want 404", code)
	}
	n.fail = errFake
	if code, body := get(t, s.URL+"/v1/locks"); code != 503 || !strings.Contains(body, errFake.Error()) {
		t.Errorf("locks without a leader: %d %s", code, body)
	}
}

func TestHTTPPage(t *testing.T) {
	n, s := fakeWeb(t)
	code, body := get(t, s.URL+"/")
	if code != 200 {
		t.Fatalf("status %d: %s", code, body)
	}
	for _, want := range []string{"n1: follower", "alice", "n2 (192.0.2.2:1753)", "&lt;n2&gt;"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	n.role = "agent"
	if code, body := get(t, s.URL+"/"); code != 200 || strings.Contains(body, "alice") {
		t.Errorf("an agent's page: %d, or it shows holds", code)
	}
}

func TestHTTPMetrics(t *testing.T) {
	n, s := fakeWeb(t)
	_, body := get(t, s.URL+"/metrics")
	for _, want := range []string{
		"lockerd_holds 2\n", "lockerd_waits 2\n", "lockerd_grants_total 2\n", "lockerd_raft_term 7\n", "lockerd_ready 1\n",
		"lockerd_servers 2\n", "lockerd_servers_reachable 1\n", `lockerd_build_info{name="n1",role="follower",version="2.0"} 1`,
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q", want)
		}
	}
	n.role = "agent"
	if _, body := get(t, s.URL+"/metrics"); strings.Contains(body, "lockerd_holds") || !strings.Contains(body, "lockerd_ready 1") {
		t.Error("an agent's metrics: holds it cannot know, or no readiness")
	}
}

func TestHTTPBreak(t *testing.T) {
	const json = "application/json"
	own := func(r *http.Request) {}
	set := func(pairs ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(pairs); i += 2 {
				r.Header.Set(pairs[i], pairs[i+1])
			}
		}
	}
	body := `{"locks":["a"],"by":"op@host"}`
	for _, c := range []struct {
		name, kind, body string
		change           func(*http.Request)
		code             int
		want             string // in the answer
	}{
		{"plain", json, body, own, 200, `{"locks":["a"],"owners":["alice"]}`},
		{"with charset", json + "; charset=utf-8", body, own, 200, "alice"},
		{"nothing held", json, `{"locks":["free"],"by":"x"}`, own, 200, `{"locks":[],"owners":[]}`},
		{"right fence", json, `{"locks":["a"],"by":"x","fence":1}`, own, 200, "alice"},
		{"wrong fence", json, `{"locks":["a"],"by":"x","fence":99}`, own, 409, "fence 99"},
		{"own page by address", json, body, func(r *http.Request) { r.Header.Set("Origin", "http://"+r.Host) }, 200, "alice"},
		{"own page by name", json, body, func(r *http.Request) {
			r.Host = "lock.example:1755"
			r.Header.Set("Origin", "http://lock.example:1755")
		}, 200, "alice"},
		{"foreign page", json, body, set("Origin", "http://evil.example"), 403, "another origin"},
		{"foreign page, new browser", json, body, set("Sec-Fetch-Site", "cross-site"), 403, "another origin"},
		{"rebound name", json, body, func(r *http.Request) { r.Host = "evil.example"; r.Header.Set("Origin", "http://evil.example") }, 403, "no name of this host"},
		{"a form", "application/x-www-form-urlencoded", "a=b", own, 415, "application/json"},
		{"no type", "", body, own, 415, "application/json"},
		{"unknown field", json, `{"locks":["a"],"by":"x","force":true}`, own, 400, "force"},
		{"no locks", json, `{"by":"x"}`, own, 400, "which locks"},
		{"no by", json, `{"locks":["a"]}`, own, 400, "who breaks"},
		{"two values", json, body + body, own, 400, "more than one"},
		{"no JSON", json, "locks=a", own, 400, "read the request"},
		{"too many", json, `{"by":"x","locks":["l` + strings.Repeat(`","l`, 100) + `"]}`, own, 400, ""},
		{"too long", json, `{"by":"` + strings.Repeat("x", maxBody) + `","locks":["a"]}`, own, 413, "longer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, s := fakeWeb(t)
			r, err := http.NewRequest("POST", s.URL+"/v1/break", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", c.kind)
			c.change(r)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.code || !strings.Contains(string(got), c.want) {
				t.Errorf("%d %s, want %d and %q", resp.StatusCode, got, c.code, c.want)
			}
			want := "alice"
			if c.code == 200 && strings.Contains(c.want, "alice") {
				want = "bob" // was next
			}
			if h := n.holder("a"); h != want {
				t.Errorf("a is held by %q afterwards, want %q", h, want)
			}
		})
	}
	t.Run("a GET", func(t *testing.T) {
		_, s := fakeWeb(t)
		if code, _ := get(t, s.URL+"/v1/break"); code != 405 {
			t.Errorf("%d, want 405", code)
		}
	})
}

// watch opens an event stream and gives its lines.
func watch(t *testing.T, url string) (next func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	lines := bufio.NewReader(resp.Body)
	return func() string {
		s, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return strings.TrimSpace(s)
	}
}

func TestHTTPEvents(t *testing.T) {
	n, s := fakeWeb(t)
	next := watch(t, s.URL+"/v1/events?lock=a")
	n.events.publish([]fsm.Event{
		{Kind: fsm.EventGranted, Owner: "dan", Locks: []string{"d"}, Fence: 8},
		{Kind: fsm.EventReleased, Owner: "alice", Locks: []string{"a"}, Fence: 1, Cause: fsm.CauseBroken, By: "op", At: 5},
	})
	want := `{"kind":"released","locks":["a"],"owner":"alice","fence":1,"mode":"exclusive","cause":"broken","by":"op","at_ms":5}`
	if got := next(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	n.events.close()
	if got := next(); !strings.Contains(got, `{"error":"events were lost`) {
		t.Errorf("last line %q", got)
	}
	if got := next(); got != "" {
		t.Errorf("a line after the last: %q", got)
	}
}

// The time-outs for requests and answers are not the stream's.
func TestHTTPEventsOutlastTimeouts(t *testing.T) {
	n := &adminFake{fakeNode: newFakeNode(t), events: newFeed(), role: "follower"}
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewHTTPServer(n, hclog.NewNullLogger())
	s.Config.ReadTimeout, s.Config.WriteTimeout = time.Second, time.Second
	s.Start()
	t.Cleanup(s.Close)
	next := watch(t, s.URL+"/v1/events")
	time.Sleep(2 * s.Config.ReadTimeout) // the time-outs have to pass
	n.events.publish([]fsm.Event{{Kind: fsm.EventGranted, Owner: "late", Locks: []string{"a"}}})
	if got := next(); !strings.Contains(got, `"late"`) {
		t.Errorf("got %q after the server's time-outs", got)
	}
}

func TestHTTPEventsAreBounded(t *testing.T) {
	n, s := fakeWeb(t)
	for range maxWatches {
		watch(t, s.URL+"/v1/events")
	}
	if code, body := get(t, s.URL+"/v1/events"); code != 503 || !strings.Contains(body, "another node") {
		t.Errorf("one too many: %d %s", code, body)
	}
	n.role = "agent"
	if code, body := get(t, s.URL+"/v1/events"); code != 501 || !strings.Contains(body, "ask a server") {
		t.Errorf("of an agent: %d %s", code, body)
	}
}

// A reader that does not read is cut off, and costs no more than its buffer.
func TestHTTPSlowWatcherIsCut(t *testing.T) {
	n, s := fakeWeb(t)
	next := watch(t, s.URL+"/v1/events")
	big := fsm.Event{Kind: fsm.EventGranted, Owner: strings.Repeat("o", 1000), Locks: []string{strings.Repeat("l", 1000)}}
	batch := make([]fsm.Event, 1000)
	for i := range batch {
		batch[i] = big
	}
	if err := waitUntil("the slow watcher is dropped", func() bool {
		n.events.publish(batch)
		n.events.mu.Lock()
		defer n.events.mu.Unlock()
		return len(n.events.watchers) == 0
	}); err != nil {
		t.Fatal(err)
	}
	last := ""
	for line := next(); line != ""; line = next() {
		last = line
	}
	if !strings.Contains(last, "events were lost") {
		t.Errorf("last line %.80q", last)
	}
}

// FuzzBreakRequest feeds the one request that changes something.
func FuzzBreakRequest(f *testing.F) {
	f.Add("application/json", []byte(`{"locks":["a"],"by":"x","fence":3}`))
	f.Add("application/json", []byte(`{"locks":[`))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r := httptest.NewRequest("POST", "/v1/break", strings.NewReader(string(body)))
		r.Header.Set("Content-Type", kind)
		req, code, err := readBreak(r)
		if (err == nil) != (code == 0) {
			t.Fatalf("error %v with code %d", err, code)
		}
		if err == nil && (len(req.Locks) == 0 || req.By == "") {
			t.Fatalf("accepted %+v", req)
		}
	})
}
