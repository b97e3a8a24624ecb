package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
	"github.com/lockerd/lockerd/transport"
)

// family is a process that has left a child behind which has its connection, as a
// command under lockersh may.
type family struct {
	parent *exec.Cmd
	fsm.Process
	conn *os.File
	wake io.Closer // ends the child
}

// newFamily starts a process that does not have the connection yet.
func newFamily(t testing.TB, addr string) *family {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	file, err := conn.(*net.TCPConn).File()
	must(t, err)
	must(t, conn.Close())
	t.Cleanup(func() { file.Close() })
	until, wake, err := os.Pipe()
	must(t, err)
	defer until.Close()
	t.Cleanup(func() { wake.Close() })
	// The child has the anchor as descriptor 3, and ends with its input.
	cmd := exec.Command("sh", "-c", "{ echo; exec cat >/dev/null; } <&4 & exec >&- 4<&- 3>&-; exec sleep 600")
	cmd.ExtraFiles = []*os.File{file, until}
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// Killed before it has a child, the parent would leave nobody with the anchor.
	_, err = out.Read(make([]byte, 1))
	must(t, err)
	p, err := pidprobe.Lookup(int32(cmd.Process.Pid))
	must(t, err)
	return &family{
		parent: cmd, conn: file, wake: wake,
		Process: fsm.Process{Host: "h", PID: p.PID, Start: p.Start, Boot: thisPlace().Boot},
	}
}

// anchor makes the anchor, and leaves it to the child alone.
func (f *family) anchor(t testing.TB, fence fsm.Fence) {
	t.Helper()
	q := transport.Request{Verb: transport.VerbAnchor, Proto: 2, User: "u", Fence: uint64(fence), Host: f.Host, PID: f.PID, Start: f.Start, Boot: f.Boot}
	_, err := f.conn.Write(q.Append(nil, false))
	must(t, err)
	in := bufio.NewReader(f.conn)
	var got []string
	for range 2 {
		line, err := in.ReadString('\n')
		must(t, err)
		got = append(got, line)
	}
	if got[1] != fmt.Sprintf("anchored %d\n", fence) {
		t.Fatalf("answered %q", got)
	}
	must(t, f.conn.Close())
}

// die kills the parent, and returns when it is dead.
func (f *family) die(t testing.TB) {
	t.Helper()
	must(t, f.parent.Process.Kill())
	_ = f.parent.Wait()
}

// clientPorts gives every node of a farm a port for clients.
func (f *farm) clientPorts() (addrs []string) {
	f.t.Helper()
	for _, n := range f.nodes {
		ln, err := ListenClient(f.t.Context(), "tcp", "127.0.0.1:0")
		must(f.t, err)
		addrs = append(addrs, ln.Addr().String())
		s := startServer(nodeForSessions{n}, []net.Listener{ln}, serverConfig{Logger: testLogger(n.Name())})
		f.t.Cleanup(s.close)
	}
	return addrs
}

// seen waits until a node has noticed that a process is dead.
func (n *Node) seen(t testing.TB, p fsm.Process) {
	t.Helper()
	must(t, waitUntil("death of "+strconv.Itoa(int(p.PID))+" at "+n.Name(), func() bool {
		n.liveness.mu.Lock()
		defer n.liveness.mu.Unlock()
		for w := range n.liveness.dead {
			if w.is(p) {
				return true
			}
		}
		return false
	}))
}

func (n *Node) mustAcquire(t testing.TB, a fsm.Acquire, notify func(fsm.Event)) fsm.Result {
	t.Helper()
	_, res, err := n.Acquire(t.Context(), a, notify)
	must(t, err)
	return res
}

// TestAChildKeepsItsParentsLock: a killed process leaves a child that has the
// anchor open. The lock is the next one's when that has ended, and not before,
// although each of three nodes of the host has seen the death.
func TestAChildKeepsItsParentsLock(t *testing.T) {
	for _, c := range []struct {
		name            string
		servers, agents int
	}{{"1", 1, 0}, {"3", 3, 0}, {"a server and an agent", 1, 1}} {
		t.Run(c.name, func(t *testing.T) {
			nodes := c.servers + c.agents
			f := newFarm(t, c.servers)
			f.leader()
			for range c.agents {
				a, err := Open(t.Context(), Config{
					Name: "agent", Version: "test", Agent: true, DataDir: t.TempDir(), PidstatPort: -1,
					Join: []string{f.confs[0].Gossip}, Gossip: freeUDP(t), Processes: watchProcesses, Logger: testLogger("agent"),
				})
				must(t, err)
				f.nodes = append(f.nodes, a)
			}
			addrs := f.clientPorts()
			for i := range nodes {
				fam := newFamily(t, addrs[i])
				holder := fmt.Sprint("holder", i)
				ask := fsm.Acquire{Owner: holder, Locks: []string{"a"}, Process: fam.Process, Autounlock: true}
				// One that nothing keeps, whose end shows that deaths are acted upon.
				ask2 := ask
				ask2.Locks = []string{"b"}
				res := f.nodes[0].mustAcquire(t, ask, func(fsm.Event) {})
				if res.Code != fsm.Granted || f.nodes[0].mustAcquire(t, ask2, func(fsm.Event) {}).Code != fsm.Granted {
					t.Fatalf("%+v", res)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				next := &simWaiter{owner: fmt.Sprint("next", i), node: f.nodes[nodes-1], told: make(chan struct{})}
				other := &simWaiter{owner: fmt.Sprint("other", i), node: f.nodes[nodes-1], told: make(chan struct{})}
				for _, w := range []struct {
					*simWaiter
					lock string
				}{{next, "a"}, {other, "b"}} {
					if res := w.node.mustAcquire(t, fsm.Acquire{Owner: w.owner, Locks: []string{w.lock}, Block: true}, w.notify); res.Code != fsm.Queued {
						t.Fatalf("%+v", res)
					}
				}
				fam.anchor(t, res.Fence)
				fam.die(t)
				// The fence of b is higher than that of a and was reported with it or after.
				b := other.fence(ctx, t)
				for _, n := range f.nodes {
					if n.liveness.isAnchored(res.Fence) != (n == f.nodes[i]) {
						t.Errorf("anchored at %s: %v", n.Name(), n != f.nodes[i])
					}
					n.seen(t, fam.Process)
					// A waiter's word on the death, as clients with autounlock give it.
					must(t, n.Dead(ctx, fam.Process))
				}
				if st, err := f.nodes[0].Status(ctx, holder, []string{"a"}); err != nil || st.Fence != res.Fence {
					t.Fatalf("the lock of a living child is gone: %+v, %v", st, err)
				}
				ended := time.Now()
				must(t, fam.wake.Close())
				a := next.fence(ctx, t)
				t.Logf("end of the child to grant: %v", time.Since(ended))
				for _, fence := range []fsm.Fence{a, b} {
					_, err := f.nodes[0].Submit(ctx, fsm.Release{Fence: fence})
					must(t, err)
				}
			}
		})
	}
}

func (l *liveness) isAnchored(f fsm.Fence) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.anchors[f] != nil
}

// TestAnchorsOfANode: anchors before the table has the hold, of holds that end in
// another way, of holds that are over, and of processes that are none of the node's.
func TestAnchorsOfANode(t *testing.T) {
	f := newFarm(t, 1)
	n := f.nodes[0]
	_, p := sleeper(t)
	acquire := func(lock string, p fsm.Process) fsm.Fence {
		t.Helper()
		res := n.mustAcquire(t, fsm.Acquire{Owner: "amy", Locks: []string{lock}, Process: p, Autounlock: true}, func(fsm.Event) {})
		if res.Code != fsm.Granted {
			t.Fatalf("%+v", res)
		}
		return res.Fence
	}
	over := func() (chan struct{}, func()) {
		ch := make(chan struct{})
		return ch, func() { close(ch) }
	}
	wait := func(what string, ch chan struct{}) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(20 * time.Second):
			t.Fatal(what, ": the anchor is still open")
		}
	}

	t.Run("before the grant", func(t *testing.T) {
		cmd, p := sleeper(t)
		fence := acquire("x", p) + 1
		ch, f := over()
		lift, err := n.Anchor(p, fence, f)
		must(t, err)
		if got := acquire("y", p); got != fence {
			t.Fatalf("fence %d, expected %d", got, fence)
		}
		must(t, cmd.Process.Kill())
		n.seen(t, p)
		must(t, waitUntil("release of x", func() bool { return tableOf{t, n}.holder("x") == "" }))
		if h := (tableOf{t, n}).holder("y"); h != "amy" {
			t.Fatalf("y is %q's", h)
		}
		lift()
		wait("lifted, and the hold over", closedSoon(func() bool { return tableOf{t, n}.holder("y") == "" }))
		lift()
		select {
		case <-ch:
			t.Error("a lifted anchor was told that its hold is over")
		default:
		}
	})
	for name, end := range map[string]fsm.Command{
		"release": fsm.Release{Owner: "amy", Locks: []string{"z"}},
		"break":   fsm.Break{Locks: []string{"z"}, By: "eve"},
	} {
		t.Run(name, func(t *testing.T) {
			fence := acquire("z", p)
			var all []chan struct{}
			for range 2 {
				ch, f := over()
				_, err := n.Anchor(p, fence, f)
				must(t, err)
				all = append(all, ch)
			}
			_, err := n.Submit(t.Context(), end)
			must(t, err)
			for _, ch := range all {
				wait(name, ch)
			}
			ch, f := over()
			_, err = n.Anchor(p, fence, f)
			must(t, err)
			wait("over before", ch)
		})
	}
	t.Run("renewed", func(t *testing.T) {
		fence := acquire("r", p)
		ch, f := over()
		_, err := n.Anchor(p, fence, f)
		must(t, err)
		acquire("r", p) // the same owner asks again
		if !n.liveness.isAnchored(fence) {
			t.Error("the anchor has not survived a renewal")
		}
		n.recharge()
		if !n.liveness.isAnchored(fence) {
			t.Error("the anchor has not survived a comparison with the table")
		}
		_, err = n.Submit(t.Context(), fsm.Release{Fence: fence})
		must(t, err)
		wait("released", ch)
	})
	t.Run("elsewhere", func(t *testing.T) {
		q := p
		q.Boot = "another"
		if _, err := n.Anchor(q, 1, func() {}); err != errOtherHost {
			t.Error(err)
		}
	})
	n.liveness.mu.Lock()
	defer n.liveness.mu.Unlock()
	if left := len(n.liveness.anchors); left != 0 {
		t.Errorf("%d fences are still anchored", left)
	}
}

// closedSoon returns a channel that is closed when ok holds.
func closedSoon(ok func() bool) chan struct{} {
	ch := make(chan struct{})
	go func() {
		if waitUntil("", ok) == nil {
			close(ch)
		}
	}()
	return ch
}

// TestAStopKeepsWhatIsAnchored: a server that stops closes its anchors, and does not
// take that for their clients' end.
func TestAStopKeepsWhatIsAnchored(t *testing.T) {
	n := newFarm(t, 1).nodes[0]
	ln, err := ListenClient(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	s := startServer(nodeForSessions{n}, []net.Listener{ln}, serverConfig{Logger: testLogger(n.Name())})
	fam := newFamily(t, ln.Addr().String())
	res := n.mustAcquire(t, fsm.Acquire{Owner: "amy", Locks: []string{"a"}, Process: fam.Process, Autounlock: true}, func(fsm.Event) {})
	fam.anchor(t, res.Fence)
	fam.die(t)
	n.seen(t, fam.Process)
	s.close()
	if !n.liveness.isAnchored(res.Fence) {
		t.Error("the stop was taken for the end of the child")
	}
	if st, err := n.Status(t.Context(), "amy", []string{"a"}); err != nil || st.Fence != res.Fence {
		t.Fatalf("%+v, %v", st, err)
	}
}
