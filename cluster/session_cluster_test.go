package cluster

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

// tableOf is a cluster's table as transcripts see it.
type tableOf struct {
	t testing.TB
	n *Node
}

func (o tableOf) read() Table {
	table, err := o.n.Table(o.t.Context(), false)
	must(o.t, err)
	return table
}

func (o tableOf) holder(lock string) string {
	for _, h := range o.read().Holds {
		for _, name := range h.Locks {
			if name == lock {
				return h.Owner
			}
		}
	}
	return ""
}

func (o tableOf) queueLen(lock string) (n int) {
	for _, w := range o.read().Waits {
		for _, name := range w.Request.Locks {
			if name == lock {
				n++
			}
		}
	}
	return n
}

// TestWireOverCluster plays transcripts with every client on another node of a
// real cluster: it must make no difference. Those that move the time or name
// fences are left out.
func TestWireOverCluster(t *testing.T) {
	f := newFarm(t, 3)
	var addrs []net.Addr
	for _, n := range f.nodes {
		ln, err := ListenClient(t.Context(), "tcp", "127.0.0.1:0")
		must(t, err)
		addrs = append(addrs, ln.Addr())
		s := startServer(nodeForSessions{n}, []net.Listener{ln}, serverConfig{Logger: testLogger(n.Name())})
		t.Cleanup(s.close)
	}
	for _, name := range []string{"lock", "any", "break", "hangup", "lines", "queue"} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile("testdata/wire/" + name + ".txt")
			must(t, err)
			w := wire{table: tableOf{t, f.nodes[0]}, addrs: addrs}
			w.play(t, string(b))
			for _, h := range w.table.(tableOf).read().Holds {
				_, err := f.nodes[0].Submit(t.Context(), fsm.Break{Locks: h.Locks})
				must(t, err)
			}
		})
	}
}

// TestCancelIsAnsweredWhenItIsDone: who has been told that a LOCK is cancelled, or that
// it took longer than the client wanted to wait, finds
// it in no queue, at whatever node.
func TestCancelIsAnsweredWhenItIsDone(t *testing.T) {
	f := newFarm(t, 3)
	f.leader()
	addrs := f.clientPorts()
	if res := f.nodes[0].mustAcquire(t, fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, func(fsm.Event) {}); res.Code != fsm.Granted {
		t.Fatalf("%+v", res)
	}
	for i := range 24 {
		conn, err := net.Dial("tcp", addrs[i%3])
		must(t, err)
		defer conn.Close()
		in := bufio.NewReader(conn)
		until := func(want string) {
			t.Helper()
			must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
			for line := ""; !strings.HasPrefix(line, want); {
				line, err = in.ReadString('\n')
				must(t, err)
			}
		}
		if i%2 == 0 {
			_, err = io.WriteString(conn, "proto 2\nuser bob\nlocks a\nblock 1\nLOCK\n\n")
			must(t, err)
			until("print_waiting")
			_, err = io.WriteString(conn, "CANCEL\n\n")
			must(t, err)
			until("error cancelled")
		} else {
			// The limit may end before the request has been answered, and after.
			_, err = fmt.Fprintf(conn, "proto 2\nuser bob\nlocks a\nblock 1\nwait 0.0%02d\nLOCK\n\n", i)
			must(t, err)
			until("error timeout")
		}
		for _, n := range f.nodes {
			if q := (tableOf{t, n}).queueLen("a"); q != 0 {
				t.Fatalf("try %d: %d in the queue, by %s", i, q, n.Name())
			}
		}
	}
}
