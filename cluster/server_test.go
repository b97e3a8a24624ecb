package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// lockAs takes a lock straight from the table.
func (n *fakeNode) lockAs(t testing.TB, owner, lock string) {
	t.Helper()
	if res := n.apply(fsm.Acquire{Owner: owner, Locks: []string{lock}}, nil); res.Code != fsm.Granted {
		t.Fatalf("%s is not granted to %s: %+v", lock, owner, res)
	}
}

// talk sends a request and returns all that comes until the server closes.
func talk(t testing.TB, addr net.Addr, request string) string {
	t.Helper()
	c := dialTest(t, addr)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// expect reads exactly want.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	n, err := io.ReadFull(r, b)
	if string(b[:n]) != want {
		t.Fatalf("got  %q, %v\nwant %q", b[:n], err, want)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const serves = "user probe\nlocks probe\nLOCK\nUNLOCK\nEOF\n"

// mustServe checks that clients are served.
func mustServe(t testing.TB, addr net.Addr) {
	t.Helper()
	want := "owner probe\nlocked 1\nlockname probe\n\n\nowner \nlocked 0\n\n\n"
	if got := talk(t, addr, serves); got != want {
		t.Fatalf("another client gets %q", got)
	}
}

func TestBadInput(t *testing.T) {
	tooLong := "owner \nlocked 0\nerror too_long\n\n\n"
	idle := "owner \nlocked 0\nerror timeout\n\n\n"
	binary := make([]byte, 1<<10)
	for i := range binary {
		binary[i] = byte(i * 7)
	}
	for _, c := range []struct{ name, in, want string }{
		{"silence", "", idle},
		{"half a line", "user sl", idle},
		{"half a request", "user slow\nlocks a\n", idle},
		{"1 MB without a newline", strings.Repeat("x", 1<<20), tooLong},
		{"64 KiB name", "locks " + strings.Repeat("n", 64<<10) + "\nLOCK\nEOF\n", tooLong},
		{"2 KiB name", "locks " + strings.Repeat("n", 2<<10) + "\nLOCK\nEOF\n", tooLong},
		{"65 names", "locks" + manyNames(65) + "\nLOCK\nEOF\n", "owner \nlocked 0\nerror too_many\n\n\n"},
		{"binary", string(binary) + "\nEOF\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newFakeNode(t)
			_, addr := startTestServer(t, n, "tcp", func(cfg *serverConfig) { cfg.Idle = 100 * time.Millisecond })
			if got := talk(t, addr, c.in); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			mustServe(t, addr)
			if c := n.counts(); c.Holds+c.Waits > 0 {
				t.Errorf("left in the table: %+v", c)
			}
		})
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" n")
		b.WriteByte(byte('A' + i%26))
		b.WriteByte(byte('A' + i/26))
	}
	return b.String()
}

// TestSilentHolders: those who wait, and those who want news of a hold, may be
// silent for as long as they like.
func TestSilentHolders(t *testing.T) {
	n := newFakeNode(t)
	n.lockAs(t, "X", "a")
	_, addr := startTestServer(t, n, "tcp", func(cfg *serverConfig) { cfg.Idle = 50 * time.Millisecond })
	waiter, holder := dialTest(t, addr), dialTest(t, addr)
	io.WriteString(waiter, "user W\nlocks a\nblock 1\nLOCK\n")
	expect(t, waiter, "print_waiting X\n")
	io.WriteString(holder, "proto 2\nuser H\nlocks b\ntimeout 5\nLOCK\n")
	expect(t, holder, "proto 2 n1\nowner H\nlocked 1\nlockname b\nfence 2\n\n\n")
	if got := talk(t, addr, ""); !strings.Contains(got, "error timeout\n") {
		t.Fatalf("an idle connection gets %q", got)
	}
	n.advance(5001)
	expect(t, holder, "lost 2 limit\n")
	n.apply(fsm.Break{Locks: []string{"a"}}, nil)
	expect(t, waiter, "print_obtained\nowner W\nlocked 1\nlockname a\n\n\n")

	// Once the hold is over the silence counts, from then on.
	if b, _ := io.ReadAll(holder); !strings.HasPrefix(string(b), "owner \nlocked 0\nerror timeout no request for 50ms") {
		t.Errorf("after the loss: %q", b)
	}
}

func TestReadAheadBound(t *testing.T) {
	n := newFakeNode(t)
	n.lockAs(t, "X", "a")
	_, addr := startTestServer(t, n, "tcp", nil)
	c := dialTest(t, addr)
	io.WriteString(c, "user W\nlocks a\nblock 1\nLOCK\n")
	expect(t, c, "print_waiting X\n")
	io.WriteString(c, strings.Repeat("STATUS\n", 300<<10/7))
	expect(t, c, "owner \nlocked 0\nerror too_long\n\n\n")
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("and then %q, %v", rest, err)
	}
	must(t, waitUntil("the wait ends", func() bool { return n.queueLen("a") == 0 }))
}

func TestMaxClients(t *testing.T) {
	s, addr := startTestServer(t, newFakeNode(t), "tcp", func(cfg *serverConfig) { cfg.MaxClients = 2 })
	a, b := dialTest(t, addr), dialTest(t, addr)
	for _, c := range []net.Conn{a, b} {
		io.WriteString(c, "VERSION\n")
		expect(t, c, "version 2.0 1700000000\n\n")
	}
	if got := talk(t, addr, "user U\nlocks A\nLOCK\nEOF\n"); got != "owner \nlocked 0\nerror too_many\n\n\n" {
		t.Errorf("one too many gets %q", got)
	}
	a.Close()
	must(t, waitUntil("a place", func() bool { return s.clients() < 2 }))
	mustServe(t, addr)
}

// TestNeverReads: a client that asks for much and reads nothing is cut off, and
// nobody else notices.
func TestNeverReads(t *testing.T) {
	n := newFakeNode(t)
	for i := range 1000 {
		n.lockAs(t, "U", fmt.Sprintf("%s%d", strings.Repeat("x", 500), i))
	}
	s, addr := startTestServer(t, n, "tcp", func(cfg *serverConfig) { cfg.WriteTimeout = 300 * time.Millisecond })
	c := dialTest(t, addr)
	go io.WriteString(c, strings.Repeat("LOCK_LIST\n", 1000))
	must(t, waitUntil("the connection is there", func() bool { return s.clients() > 0 }))
	mustServe(t, addr)
	must(t, waitUntil("it is cut off", func() bool { return s.clients() == 0 }))
}

// muteConn loses its peer at the moment of a grant.
type muteConn struct{ net.Conn }

func (c muteConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("locked 1")) {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(b)
}

// TestUndelivered: a grant that cannot be written is undone, at once or after a wait.
func TestUndelivered(t *testing.T) {
	n := newFakeNode(t)
	n.lockAs(t, "X", "b")
	cfg := &serverConfig{Idle: time.Minute, WriteTimeout: time.Minute}
	for _, lock := range []string{"a", "b"} {
		near, far := net.Pipe()
		over := make(chan struct{})
		go func() {
			defer close(over)
			newSession(t.Context(), muteConn{far}, n, cfg).serve()
		}()
		io.WriteString(near, "user U\nlocks "+lock+"\nblock 1\nLOCK\n")
		if lock == "b" {
			expect(t, near, "print_waiting X\n")
			n.apply(fsm.Break{Locks: []string{"b"}}, nil)
		}
		<-over
		if got := n.holder(lock); got != "" {
			t.Errorf("%s is held by %q", lock, got)
		}
	}
}

func TestHungUp(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = t.TempDir() + "/s"
		}
		ln, err := net.Listen(network, addr)
		must(t, err)
		defer ln.Close()
		for _, say := range []string{"", "unread"} {
			near, err := net.Dial(network, ln.Addr().String())
			must(t, err)
			far, err := ln.Accept()
			must(t, err)
			io.WriteString(near, say)
			if hungUp(far) {
				t.Errorf("%s: hung up at once", network)
			}
			near.Close()
			must(t, waitUntil(network+": hung up", func() bool { return hungUp(far) }))
			far.Close()
		}
	}
}

// TestSlowLock: while a LOCK is on its way to the leader, its client may go, or
// change its mind, or say more.
func TestSlowLock(t *testing.T) {
	lock := "proto 2\nuser U\nlocks a\nblock 1\nLOCK\n"
	start := func(t *testing.T, request string) (*fakeNode, *server, net.Conn) {
		t.Parallel()
		n := newFakeNode(t)
		n.stall = make(chan struct{})
		s, addr := startTestServer(t, n, "tcp", nil)
		c := dialTest(t, addr)
		io.WriteString(c, request)
		expect(t, c, "proto 2 n1\n")
		return n, s, c
	}
	t.Run("hang up", func(t *testing.T) {
		n, s, c := start(t, lock)
		c.Close()
		must(t, waitUntil("the session ends", func() bool { return s.clients() == 0 }))
		close(n.stall)
		if h := n.holder("a"); h != "" {
			t.Errorf("granted to %q, who has gone", h)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		n, _, c := start(t, lock)
		io.WriteString(c, "CANCEL\nPING\n")
		expect(t, c, "owner \nlocked 0\nerror cancelled as asked\n\n\npong\n")
		close(n.stall)
	})
	t.Run("longest wait", func(t *testing.T) {
		_, _, c := start(t, "proto 2\nwait 0.1\n"+lock)
		expect(t, c, "proto 2 n1\nowner \nlocked 0\nerror timeout not granted within 100ms\n\n\n")
	})
	t.Run("say more", func(t *testing.T) {
		n, s, c := start(t, lock+"STATUS\n")
		must(t, waitUntil("the watch begins", func() bool { return s.watches() == 1 }))
		io.WriteString(c, "UNLOCK\nPI")
		close(n.stall)
		expect(t, c, "owner U\nlocked 1\nlockname a\nfence 1\n\n\nowner U\nlocked 1\nlockname a\nfence 1\n\n\nowner \nlocked 0\n\n\n")
		io.WriteString(c, "NG\n")
		expect(t, c, "pong\n")
	})
}

// watches is the number of sessions that read while their LOCK is on its way.
func (s *server) watches() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ss := range s.sessions {
		ss.mu.Lock()
		if ss.watching {
			n++
		}
		ss.mu.Unlock()
	}
	return n
}

// TestReach: without a leader in reach connections are refused, at the connect,
// and those that are there stay.
func TestReach(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			n := newFakeNode(t)
			n.lockAs(t, "X", "a")
			var reach atomic.Bool
			reach.Store(true)
			_, addr := startTestServer(t, n, network, func(cfg *serverConfig) { cfg.Reachable = reach.Load })
			w := dialTest(t, addr)
			io.WriteString(w, "user W\nlocks a\nblock 1\nLOCK\n")
			expect(t, w, "print_waiting X\n")

			connect := func() error {
				c, err := net.Dial(addr.Network(), addr.String())
				if err == nil {
					c.Close()
				}
				return err
			}
			reach.Store(false)
			must(t, waitUntil("connections are refused", func() bool {
				err := connect()
				return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
			}))
			reach.Store(true)
			must(t, waitUntil("connections are taken", func() bool { return connect() == nil }))
			mustServe(t, addr)
			n.apply(fsm.Break{Locks: []string{"a"}}, nil)
			expect(t, w, "print_obtained\nowner W\nlocked 1\nlockname a\n\n\n")
		})
	}
}

// TestMove: a node that stops tells its clients where to go.
func TestMove(t *testing.T) {
	n := newFakeNode(t)
	n.lockAs(t, "X", "a")
	s, addr := startTestServer(t, n, "tcp", nil)
	oldIdle, oldWaiting, idle, waiting, staying := dialTest(t, addr), dialTest(t, addr), dialTest(t, addr), dialTest(t, addr), dialTest(t, addr)
	io.WriteString(oldIdle, "VERSION\n")
	expect(t, oldIdle, "version 2.0 1700000000\n\n")
	io.WriteString(oldWaiting, "user O\nlocks a\nblock 1\nLOCK\nEOF\n")
	expect(t, oldWaiting, "print_waiting X\n")
	io.WriteString(idle, "proto 2\n")
	expect(t, idle, "proto 2 n1\n")
	io.WriteString(waiting, "proto 2\nuser W\nlocks a\nblock 1\nLOCK\n")
	expect(t, waiting, "proto 2 n1\nprint_waiting X\nplace 2\n")
	io.WriteString(staying, "proto 2\nuser S\nlocks a\nblock 1\nLOCK\n")
	expect(t, staying, "proto 2 n1\nprint_waiting X\nplace 3\n")

	moved := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(moved)
		s.move(ctx, []string{"h2:1751", "h3:1751"})
	}()
	rest := func(c net.Conn) string {
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if got := rest(oldIdle); got != "owner \nlocked 0\nerror stopping\n\n\n" {
		t.Errorf("an old client gets %q", got)
	}
	if got := rest(oldWaiting); got != "owner \nlocked 0\nerror stopping\n\n\n" {
		t.Errorf("an old client that waits gets %q", got)
	}
	if got := rest(idle); got != "moved h2:1751 h3:1751\n" {
		t.Errorf("a client gets %q", got)
	}
	expect(t, waiting, "moved h2:1751 h3:1751\n")
	expect(t, staying, "moved h2:1751 h3:1751\n")
	if _, err := net.Dial("tcp", addr.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v", err)
	}

	// Who goes elsewhere keeps its place; who stays is granted here still.
	waiting.Close()
	must(t, waitUntil("the connection ends", func() bool { return s.clients() == 1 }))
	if q := n.queueLen("a"); q != 2 {
		t.Errorf("%d requests are queued, want 2", q)
	}
	n.apply(fsm.Break{Locks: []string{"a"}}, nil) // W's turn, which nobody can tell it of
	expect(t, staying, "print_obtained\nowner S\nlocked 1\nlockname a\nfence 3\n\n\n")
	if h := n.holder("a"); h != "S" {
		t.Errorf("held by %q", h)
	}
	cancel()
	<-moved
	s.close()
	if c := s.clients(); c > 0 {
		t.Errorf("%d sessions are left", c)
	}
}

func TestListenClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	dead.SetUnlinkOnClose(false) // as kill -9 leaves it
	must(t, dead.Close())

	live, err := ListenClient(t.Context(), "unix", path)
	must(t, err)
	if _, err := ListenClient(t.Context(), "unix", path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("beside a live server: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Errorf("the live server's socket is gone: %v", err)
	} else {
		c.Close()
	}
	must(t, live.Close())

	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	if _, err := ListenClient(t.Context(), "unix", path); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("a file was removed")
	}

	tcp, err := ListenClient(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer tcp.Close()
	if _, err := ListenClient(t.Context(), "tcp", tcp.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("beside a live server: %v", err)
	}
}

// TestPipelining: many requests in one packet are answered in order.
func TestPipelining(t *testing.T) {
	const pairs = 2000
	_, addr := startTestServer(t, newFakeNode(t), "tcp", nil)
	c := dialTest(t, addr)
	go io.WriteString(c, "user U\nlocks A\nblock 1\n"+strings.Repeat("LOCK\nUNLOCK\n", pairs)+"EOF\n")
	r := bufio.NewReader(c)
	for range pairs {
		expect(t, r, "owner U\nlocked 1\nlockname A\n\n\nowner \nlocked 0\n\n\n")
	}
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("and then %q, %v", b, err)
	}
}
