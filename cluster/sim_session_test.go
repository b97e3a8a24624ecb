package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// simAnswer is how long a client of a simulation waits for an answer: far longer
// than any fault lasts.
const simAnswer = time.Hour

// lineClient speaks the line protocol to one node's session, over the simulated network.
type lineClient struct {
	t     *testing.T
	owner string
	node  string
	conn  net.Conn
	in    *bufio.Reader
}

// simPort is where a simulated node serves clients: another address than its
// peers', so that a node cut off from the cluster still has its clients.
func simPort(id string) string { return id + ":clients" }

// serveClients has every node that is started serve clients too.
func (s *sim) serveClients() {
	s.configure = func(c *Config) {
		ln, err := s.net.Listen(simPort(c.Name))
		if err != nil {
			s.t.Fatal(err)
		}
		c.Clients = []net.Listener{ln}
	}
}

func (s *sim) dial(ctx context.Context, id, owner string) *lineClient {
	s.t.Helper()
	conn, err := s.net.Dial(ctx, owner, simPort(id))
	if err != nil {
		s.t.Fatalf("%s: dial %s: %v", owner, id, err)
	}
	c := &lineClient{t: s.t, owner: owner, node: id, conn: conn, in: bufio.NewReader(conn)}
	c.send("proto 2\nuser %s\nlocks x\nblock 1\n", owner)
	c.want("proto 2 " + id)
	return c
}

func (c *lineClient) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, format, args...); err != nil {
		c.t.Fatalf("%s by %s: send: %v", c.owner, c.node, err)
	}
}

// line reads one line, which must come.
func (c *lineClient) line() string {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(simAnswer)); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%s by %s: after %q: %v", c.owner, c.node, line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (c *lineClient) want(lines ...string) {
	c.t.Helper()
	for _, want := range lines {
		if got := c.line(); got != want {
			c.t.Fatalf("%s by %s: read %q, want %q", c.owner, c.node, got, want)
		}
	}
}

// queue asks for the lock, which somebody has.
func (c *lineClient) queue(holder string, place int) {
	c.t.Helper()
	c.send("LOCK\n")
	c.want("print_waiting "+holder, fmt.Sprint("place ", place))
}

// granted reads a grant, to the letter, and returns its fence.
func (c *lineClient) granted(waited bool) fsm.Fence {
	c.t.Helper()
	if waited {
		c.want("print_obtained")
	}
	c.want("owner "+c.owner, "locked 1", "lockname x")
	fence, err := strconv.ParseUint(strings.TrimPrefix(c.line(), "fence "), 10, 64)
	if err != nil || fence == 0 {
		c.t.Fatalf("%s by %s: fence: %v", c.owner, c.node, err)
	}
	c.want("", "")
	return fsm.Fence(fence)
}

// release gives the lock to next, and reads that it has it.
func (c *lineClient) release(next string) {
	c.t.Helper()
	c.send("UNLOCK\n")
	c.want("owner "+next, "locked 0", "", "")
}

// end closes the connection, on which nothing more may have come: no second
// grant, no loss.
func (c *lineClient) end() {
	c.t.Helper()
	c.send("EOF\n")
	if err := c.conn.SetReadDeadline(time.Now().Add(simAnswer)); err != nil {
		c.t.Fatal(err)
	}
	if rest, err := io.ReadAll(c.in); err != nil || len(rest) != 0 {
		c.t.Errorf("%s by %s: told besides: %q, %v", c.owner, c.node, rest, err)
	}
	if err := c.conn.Close(); err != nil {
		c.t.Errorf("%s: close: %v", c.owner, err)
	}
}
