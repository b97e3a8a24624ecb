package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const holdsJSON = `{"holds":[{"lock":"a","locks":["a","b"],"owner":"alice","fence":7,"mode":"slots","slots":3,"host":"h","pid":42,"granted_ms_ago":1500,"left_ms":61000,"autounlock":true,"waiters":1}],
"waiters":[{"locks":["a","c"],"owner":"bob\u001b[31m","ticket":3,"place":1,"mode":"exclusive","choice":"any","waited_ms":20}]}`

const statusJSON = `{"name":"n1","id":"i1","role":"follower","version":"2.0","started":"2020-01-01T00:00:00Z","ready":true,
"leader":"n2","leader_id":"i2","leader_addr":"h2:1753","term":4,"commit_index":9,"applied_index":8,
"servers":[{"name":"n1","id":"i1","addr":"h1:1753","voter":true,"reachable":true},{"id":"i3","addr":"h3:1753","voter":true}],
"counts":{"locks":3,"holds":2,"waits":1,"nodes":1,"fence":7,"ticket":3}}`

// fake answers as a node would, with what a test has prepared.
type fake struct {
	code         int
	body         string
	path, posted string
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.path = r.URL.String()
	b, _ := io.ReadAll(r.Body)
	f.posted = string(b)
	w.WriteHeader(f.code)
	io.WriteString(w, f.body)
}

func serve(t *testing.T, f http.Handler) (addr string) {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func lockctl(t *testing.T, addr, args string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"--addr", addr}, strings.Fields(args)...), &out, &errs)
	return code, out.String(), errs.String()
}

func TestOutput(t *testing.T) {
	for _, c := range []struct {
		args, body, path string
		want             []string
		not              string
	}{
		{"status", statusJSON, "/v1/status", []string{
			"Node     n1 (follower)\n", "Ready    yes\n", "Leader   n2 (h2:1753)\n", "Log      committed 9, applied 8\n",
			"Table    3 locks, 2 holds, 1 waiting\n", "n1      h1:1753  voter  yes\n", "i3      h3:1753  voter  no\n",
		}, "Digest"},
		{"status", `{"name":"n1","role":"candidate","ready":false,"reason":"no leader: 1 of 3 servers reachable","leader":"","leader_id":""}`, "/v1/status", []string{
			"Ready    no: no leader: 1 of 3 servers reachable\n", "Leader   none\n",
		}, "Table"},
		{"status --digest", `{"digest":"abc","digest_index":5}`, "/v1/status?digest=1", []string{"Digest   abc at 5\n"}, ""},
		{"members", `[{"name":"n1","kind":"server","host":"h","peer":"h:1753","client":"h:1751","version":"2.0","voter":true},{"name":"x","kind":"agent"}]`, "/v1/members", []string{
			"n1    voter  h     h:1753  h:1751   2.0\n", "x     agent  -     -       -        -\n",
		}, ""},
		{"members", `[{"name":"n3","kind":"server","peer":"h:1753","note":"has come back without its data: lockctl remove 6f0c, then it is taken in"}]`, "/v1/members", []string{
			"\nn3 at h:1753 has come back without its data: lockctl remove 6f0c, then it is taken in.\n",
		}, ""},
		{"locks", holdsJSON, "/v1/locks", []string{
			"a b   alice  7      slots 3  h:42     1.5s  1m1s     1\n", "any of a c", `"bob\x1b[31m"`,
		}, "\x1b"},
		{"locks", `{"holds":[],"waiters":[{"locks":["a"],"owner":"bob","place":2,"away":true}]}`, "/v1/locks", []string{"2, passed over"}, ""},
		{"locks", `{"holds":[{"locks":["a"],"owner":"bob","fence":7,"mode":"exclusive","suspended":{"by":"root@h1","ms_ago":61000,"context":"/c/a.7"}}]}`, "/v1/locks", []string{
			"exclusive, suspended", "SUSPENDED  FENCE  BY       SINCE  JOB\na          7      root@h1  1m1s   /c/a.7\n",
		}, ""},
		{"locks --lock a --stale", `{"holds":[],"waiters":[]}`, "/v1/locks?lock=a&stale=1", []string{"Nothing is held.\n"}, ""},
		{"locks --json", `{"holds":[],"waiters":[]}`, "/v1/locks", []string{"{\n  \"holds\": [],\n  \"waiters\": []\n}\n"}, "Nothing"},
	} {
		f := &fake{code: 200, body: c.body}
		code, out, errs := lockctl(t, serve(t, f), c.args)
		if code != 0 || f.path != c.path {
			t.Errorf("%s: exit code %d, asked for %s; want %s: %s", c.args, code, f.path, c.path, errs)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: no %q in:\n%s", c.args, w, out)
			}
		}
		if c.not != "" && strings.Contains(out, c.not) {
			t.Errorf("%s: %q in:\n%s", c.args, c.not, out)
		}
	}
}

func TestCommands(t *testing.T) {
	for _, c := range []struct {
		args   string
		code   int
		body   string
		exit   int
		posted string
		want   string
	}{
		{"break a b --by op", 200, `{"locks":["a"],"owners":["alice"]}`, 0, `{"by":"op","locks":["a","b"]}`, "Broken: a, held by alice"},
		{"break a --by op --fence 7", 200, `{"locks":["a"],"owners":["alice"]}`, 0, `{"by":"op","fence":7,"locks":["a"]}`, "alice"},
		{"break a --by op", 200, `{"locks":[],"owners":[]}`, 1, `{"by":"op","locks":["a"]}`, "nobody holds a"},
		{"break a --by op --json", 200, `{"locks":[],"owners":[]}`, 1, `{"by":"op","locks":["a"]}`, "nobody holds a"},
		{"break a --by op", 409, `{"error":"that hold is over"}`, 1, `{"by":"op","locks":["a"]}`, "that hold is over"},
		{"break a --by op", 503, `{"error":"no leader: 1 of 3"}`, 69, `{"by":"op","locks":["a"]}`, "no leader: 1 of 3"},
		{"break", 200, "", 64, "", "at least 1 arg"},
		{"break a --fence 0", 200, "", 64, "", "--fence 0"},
		{"transfer", 200, `{"leader":"n2"}`, 0, `{"to":""}`, "Leader: n2\n"},
		{"transfer n2", 200, `{"leader":"n2"}`, 0, `{"to":"n2"}`, "Leader: n2\n"},
		{"transfer n2 --json", 200, `{"leader":"n2"}`, 0, `{"to":"n2"}`, "{\n  \"leader\": \"n2\"\n}\n"},
		{"transfer n2", 409, `{"error":"n2 is not in touch"}`, 1, `{"to":"n2"}`, "refused: n2 is not in touch"},
		{"transfer n2", 503, `{"error":"no leader: 1 of 3"}`, 69, `{"to":"n2"}`, "no leader: 1 of 3"},
		{"remove n3", 200, `{"id":"6f0c","name":"n3","addr":"h3:1753"}`, 0, `{"node":"n3"}`, "Removed: n3 (h3:1753), id 6f0c\n"},
		{"remove 6f0c --force", 200, `{"id":"6f0c","name":"","addr":"h3:1753"}`, 0, `{"force":true,"node":"6f0c"}`, "Removed: 6f0c (h3:1753), id 6f0c\n"},
		{"remove n3 --json", 200, `{"id":"6f0c","name":"n3","addr":"h3:1753"}`, 0, `{"node":"n3"}`, "{\n  \"id\": \"6f0c\",\n"},
		{"remove n3", 409, `{"error":"n3 is the last server with a vote"}`, 1, `{"node":"n3"}`, "refused: n3 is the last"},
		{"remove n3", 503, `{"error":"no leader: 1 of 3"}`, 69, `{"node":"n3"}`, "no leader: 1 of 3"},
		{"remove", 200, "", 64, "", "accepts 1 arg"},
		{"remove n1 n2", 200, "", 64, "", "accepts 1 arg"},
		{"transfer n2 n3", 200, "", 64, "", "at most 1 arg"},
	} {
		f := &fake{code: c.code, body: c.body}
		code, out, errs := lockctl(t, serve(t, f), c.args)
		if code != c.exit || f.posted != c.posted || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: exit code %d, posted %s, said %q %q; want %d, %s, %q", c.args, code, f.posted, out, errs, c.exit, c.posted, c.want)
		}
	}
	if by := self(); !strings.Contains(by, "@") {
		t.Errorf("the default of --by is %q", by)
	}
}

func TestExitCodes(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := ln.Addr().String() // it accepts, and says nothing
	defer ln.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := dead.Addr().String()
	dead.Close()
	other := serve(t, http.NotFoundHandler())
	garbage := serve(t, &fake{code: 200, body: "<html>"})
	for _, c := range []struct {
		addr, args string
		code       int
		want       string
	}{
		{refusing, "status", 69, "connection refused"},
		{silent, "status --timeout 50ms", 69, "nothing within 50ms"},
		{silent, "watch --timeout 50ms", 69, "nothing within 50ms"},
		{other, "status", 69, "as no lockerd does"},
		{garbage, "status", 69, "understands"},
		{garbage, "watch", 69, "understands"},
		{"nonsense", "status", 64, "wants host:port"},
		{other, "frobnicate", 64, "unknown command"},
		{other, "status stray", 64, "stray"},
		{other, "status --bogus", 64, "unknown flag"},
		{other, "", 64, "which command"},
	} {
		code, _, errs := lockctl(t, c.addr, c.args)
		if code != c.code || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q; want %d, %q in one line", c.args, code, errs, c.code, c.want)
		}
	}
	for _, args := range []string{"--version", "--help"} {
		code, out, _ := lockctl(t, other, args)
		if code != 0 || !strings.Contains(out, map[string]string{"--version": "Version: " + version + "\n", "--help": "69  no answer"}[args]) {
			t.Errorf("%s: exit code %d, %q", args, code, out)
		}
	}
}

// lines is a writer that can be waited on.
type lines struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got.String()
}

func TestWatch(t *testing.T) {
	first := `{"kind":"released","locks":["a"],"owner":"alice","fence":7,"mode":"exclusive","cause":"broken","by":"op"}`
	release := make(chan struct{})
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "\n%s\n", first)
		http.NewResponseController(w).Flush()
		select {
		case <-release:
			fmt.Fprintln(w, `{"error":"events were lost"}`)
		case <-r.Context().Done():
		}
	}))
	watch := func(ctx context.Context, args ...string) (*lines, *lines, chan int) {
		out, errs, code := new(lines), new(lines), make(chan int, 1)
		go func() { code <- run(ctx, append([]string{"--addr", addr, "watch"}, args...), out, errs) }()
		deadline := time.Now().Add(10 * time.Second)
		for !strings.Contains(out.String(), "\n") {
			if time.Now().After(deadline) {
				t.Fatalf("nothing seen; %s", errs)
			}
			time.Sleep(time.Millisecond)
		}
		return out, errs, code
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, errs, code := watch(ctx, "--json")
	if out.String() != first+"\n" {
		t.Errorf("with --json: %q", out)
	}
	interrupt()
	if c := <-code; c != 0 {
		t.Errorf("interrupted: exit code %d, %s", c, errs)
	}
	out, errs, code = watch(t.Context())
	if !strings.Contains(out.String(), "released    a  alice  fence 7  (broken by op)\n") {
		t.Errorf("text: %q", out)
	}
	close(release)
	if c := <-code; c != 69 || !strings.Contains(errs.String(), "events were lost") {
		t.Errorf("ended by the node: exit code %d, %q", c, errs)
	}
}
