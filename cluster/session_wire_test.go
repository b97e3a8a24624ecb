package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// TestWire plays the transcripts of testdata/wire: what clients send, and every
// byte they must get.
//
//	a> LINE      client a sends a line; lines that follow one another go in one write
//	a raw "..."  client a sends these bytes (Go syntax), and no newline
//	a< LINE      client a gets a line, and nothing before it
//	a closed     the server ends the connection, and nothing comes before that
//	a hangup     client a closes
//	a reset      client a closes with a reset
//	a half       client a ends its side, and reads on
//	holder L O   wait until O holds L ("-" for nobody)
//	queue L N    wait until N requests wait for L
//	advance MS   move the table's time
//	fail 0|1     the cluster has no leader from now on, or has one again
//	suspend N    the hold with fence N is suspended
//	lifted N     wait until N anchors have been lifted
//	dead H P     wait until the node has been told that process P of host H is dead
//
// A client connects when it is named first. At the end of a transcript, no client
// may have unread bytes. Each transcript is played over TCP, over a UNIX socket,
// with every byte in a write of its own, and with lines ended as on Windows.
func TestWire(t *testing.T) {
	files, err := filepath.Glob("testdata/wire/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, how := range []wire{
			{name: "tcp", network: "tcp"},
			{name: "unix", network: "unix"},
			{name: "bytes", network: "tcp", bytewise: true},
			{name: "crlf", network: "tcp", cr: true},
		} {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+how.name, func(t *testing.T) {
				t.Parallel()
				how.play(t, string(b))
			})
		}
	}
}

// wire is one way to play transcripts.
type wire struct {
	name     string
	network  string
	bytewise bool
	cr       bool

	t       *testing.T
	table   wireTable
	node    *fakeNode // nil when played on a cluster
	addrs   []net.Addr
	clients map[string]*wireClient
	sending string // client with lines to send
	lines   strings.Builder
}

// wireTable is what transcripts see of a lock table.
type wireTable interface {
	holder(lock string) string
	queueLen(lock string) int
}

type wireClient struct {
	net.Conn
	in   *bufio.Reader
	over bool
}

func (w wire) play(t *testing.T, script string) {
	w.t = t
	if w.table == nil {
		w.node = newFakeNode(t)
		_, addr := startTestServer(t, w.node, w.network, nil)
		w.table, w.addrs = w.node, []net.Addr{addr}
	}
	w.clients = make(map[string]*wireClient)
	for i, line := range strings.Split(script, "\n") {
		if err := w.step(line); err != nil {
			t.Fatalf("line %d: %s\n%v", i+1, line, err)
		}
	}
	if err := w.send(); err != nil {
		t.Fatal(err)
	}
	for name, c := range w.clients {
		if c.over {
			continue
		}
		io.WriteString(c, "\nEOF\n")
		if rest, err := io.ReadAll(c.in); err != nil || len(rest) > 0 {
			t.Errorf("at the end, client %s gets %q, %v", name, rest, err)
		}
	}
}

func (w *wire) client(name string) *wireClient {
	c := w.clients[name]
	if c == nil {
		conn := dialTest(w.t, w.addrs[len(w.clients)%len(w.addrs)])
		c = &wireClient{Conn: conn, in: bufio.NewReader(conn)}
		w.clients[name] = c
	}
	return c
}

func (w *wire) step(line string) error {
	if strings.HasPrefix(line, "#") || line == "" {
		return nil
	}
	verb, rest, _ := strings.Cut(line, " ")
	name, out := strings.CutSuffix(verb, ">")
	if out {
		if w.sending != name {
			if err := w.send(); err != nil {
				return err
			}
		}
		w.sending = name
		w.lines.WriteString(rest)
		if w.cr {
			w.lines.WriteByte('\r')
		}
		w.lines.WriteByte('\n')
		return nil
	}
	if err := w.send(); err != nil {
		return err
	}
	if name, in := strings.CutSuffix(verb, "<"); in {
		got, err := w.client(name).in.ReadString('\n')
		if err != nil || got != rest+"\n" {
			return fmt.Errorf("got %q, %v", got, err)
		}
		return nil
	}
	return w.do(verb, strings.Fields(rest), rest)
}

// do carries out the steps that are not lines.
func (w *wire) do(verb string, args []string, rest string) error {
	switch verb {
	case "holder":
		owner := strings.Replace(args[1], "-", "", 1)
		return waitUntil(rest, func() bool { return w.table.holder(args[0]) == owner })
	case "queue":
		n, err := strconv.Atoi(args[1])
		return errors.Join(err, waitUntil(rest, func() bool { return w.table.queueLen(args[0]) == n }))
	case "advance":
		n, err := strconv.Atoi(rest)
		w.node.advance(fsm.Millis(n))
		return err
	case "suspend":
		n, err := strconv.Atoi(rest)
		w.node.apply(fsm.Suspend{Fence: fsm.Fence(n), By: "root@h1", Context: "/c/1"}, nil)
		return err
	case "fail":
		w.node.mu.Lock()
		defer w.node.mu.Unlock()
		w.node.fail = nil
		if rest == "1" {
			w.node.fail = errFake
		}
		return nil
	case "lifted":
		n, err := strconv.Atoi(rest)
		return errors.Join(err, waitUntil(rest, func() bool {
			w.node.mu.Lock()
			defer w.node.mu.Unlock()
			return len(w.node.lifted) == n
		}))
	case "dead":
		n, err := strconv.Atoi(args[1])
		return errors.Join(err, waitUntil(rest, func() bool {
			w.node.mu.Lock()
			defer w.node.mu.Unlock()
			for _, p := range w.node.dead {
				if p.Host == args[0] && int(p.PID) == n {
					return true
				}
			}
			return false
		}))
	}
	c := w.client(verb)
	switch what, arg, _ := strings.Cut(rest, " "); what {
	case "raw":
		b, err := strconv.Unquote(arg)
		if err != nil {
			return err
		}
		return w.write(c, b)
	case "closed":
		c.over = true
		if rest, err := io.ReadAll(c.in); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
			return fmt.Errorf("got %q, %v", rest, err)
		}
		return nil
	case "hangup":
		c.over = true
		return c.Close()
	case "reset":
		c.over = true
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		return c.Close()
	case "half":
		return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
	}
	return errors.New("no such step")
}

// send sends the lines that have been gathered.
func (w *wire) send() error {
	if w.sending == "" {
		return nil
	}
	c := w.client(w.sending)
	b := w.lines.String()
	w.sending = ""
	w.lines.Reset()
	return w.write(c, b)
}

func (w *wire) write(c *wireClient, b string) error {
	if !w.bytewise {
		_, err := io.WriteString(c, b)
		return err
	}
	for i := range len(b) {
		if _, err := c.Write([]byte{b[i]}); err != nil {
			return err
		}
		if i%7 == 0 {
			time.Sleep(50 * time.Microsecond) // so that segments stay apart
		}
	}
	return nil
}
