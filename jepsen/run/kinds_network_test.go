//go:build jepsen

package run_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/netns"
)

// clients is the place of the clients among the names of nodes.
const clients = "clients"

// hears says whether datagrams from one place reach another.
type hears func(from, to string) bool

// apart reads "n1 n2 | n3", "leader n1" and "leader n1 and its clients".
func apart(_ *testing.T, did string, all []string) hears {
	left, _, ok := strings.Cut(did, " | ")
	side := nodeName.FindAllString(left, -1)
	return func(from, to string) bool {
		switch {
		case from == clients:
			return !strings.HasSuffix(did, "clients") || to != side[0]
		case !ok && len(side) != 1:
			return true // nobody was cut off, which the caller will see
		}
		return slices.Contains(side, from) == slices.Contains(side, to)
	}
}

// neighbours reads "each sees its neighbours of n3 n1 n2 n5 n4".
func neighbours(t *testing.T, did string, all []string) hears {
	circle := nodeName.FindAllString(did, -1)
	if len(circle) != len(all) {
		t.Fatalf("%q: not all", did)
	}
	return func(from, to string) bool {
		d := slices.Index(circle, from) - slices.Index(circle, to)
		return from == clients || d == 1 || d == -1 || d == len(all)-1 || d == 1-len(all)
	}
}

// oneWay reads "n1 is deaf" and "n1 is mute".
func oneWay(_ *testing.T, did string, _ []string) hears {
	one, how, _ := strings.Cut(did, " is ")
	return func(from, to string) bool {
		return from == clients || how == "deaf" && to != one || how == "mute" && from != one
	}
}

func noClients(_ *testing.T, did string, _ []string) hears {
	some := nodeName.FindAllString(did, -1)
	return func(from, to string) bool { return from != clients || !slices.Contains(some, to) }
}

func noLink(_ *testing.T, did string, _ []string) hears {
	some := nodeName.FindAllString(did, -1)
	return func(from, to string) bool { return !slices.Contains(some, from) && !slices.Contains(some, to) }
}

// cutsLinks: who ought not to hear whom does not, and all others do, under a number of
// seeds of a fault.
func cutsLinks(kind string, seeds uint64, expected func(t *testing.T, did string, all []string) hears) proof {
	return func(t *testing.T, g *ground) {
		e := newEars(t, g.c)
		everybody := func(string, string) bool { return true }
		for seed := range seeds {
			g.under(t, kind, seed, func(did string) {
				want := expected(t, did, e.names())
				cut := 0
				for _, p := range e.pairs() {
					if !want(p[0], p[1]) {
						cut++
					}
				}
				if cut == 0 {
					t.Errorf("%q cuts nobody off", did)
				}
				e.compare(t, did, want)
			})
			e.compare(t, "healed", everybody)
		}
	}
}

// ears hear datagrams on all nodes.
type ears struct {
	conns map[string]net.PacketConn // by node; the clients only speak

	mu    sync.Mutex
	heard map[string]int // by "from to"
}

func newEars(t *testing.T, c *db.Cluster) *ears {
	t.Helper()
	e := &ears{conns: map[string]net.PacketConn{}, heard: map[string]int{}}
	var readers sync.WaitGroup
	open := func(name, ip string, within func(func() error) error) {
		var conn net.PacketConn
		if err := within(func() (err error) { conn, err = net.ListenPacket("udp", ip+":0"); return err }); err != nil {
			t.Fatal(err)
		}
		e.conns[name] = conn
		readers.Go(func() {
			b := make([]byte, 100)
			for {
				n, _, err := conn.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				e.mu.Lock()
				e.heard[string(b[:n])+" "+name]++
				e.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() {
		for _, c := range e.conns {
			_ = c.Close()
		}
		readers.Wait()
	})
	for _, n := range c.Nodes {
		open(n.Name, n.Host.IP, n.Host.Within)
	}
	open(clients, netns.Clients, func(f func() error) error { return f() })
	return e
}

// names are those of the nodes.
func (e *ears) names() (all []string) {
	for name := range e.conns {
		if name != clients {
			all = append(all, name)
		}
	}
	return all
}

// pairs are all that are looked at: from whom, to whom.
func (e *ears) pairs() (all [][2]string) {
	for from := range e.conns {
		for to := range e.conns {
			if from != to && to != clients {
				all = append(all, [2]string{from, to})
			}
		}
	}
	return all
}

// compare sends datagrams until all have arrived a few times that ought to. Those that
// ought not to would have by then.
func (e *ears) compare(t *testing.T, when string, want hears) {
	t.Helper()
	e.mu.Lock()
	clear(e.heard)
	e.mu.Unlock()
	const times = 3
	missing := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, p := range e.pairs() {
			_, _ = e.conns[p[0]].WriteTo([]byte(p[0]), e.conns[p[1]].LocalAddr()) // a link may be down
		}
		missing = ""
		e.mu.Lock()
		for _, p := range e.pairs() {
			if want(p[0], p[1]) && e.heard[p[0]+" "+p[1]] < times {
				missing += fmt.Sprintf(" %s to %s", p[0], p[1])
			}
		}
		e.mu.Unlock()
		if missing == "" {
			break
		}
	}
	if missing != "" {
		t.Errorf("%s: not heard:%s", when, missing)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.pairs() {
		if n := e.heard[p[0]+" "+p[1]]; n > 0 && !want(p[0], p[1]) {
			t.Errorf("%s: %s heard %s %d times", when, p[1], p[0], n)
		}
	}
}

// resets: whoever connects to the node is refused.
func resets(t *testing.T, g *ground) {
	g.under(t, "reset", 1, func(did string) {
		some, others := g.struck(t, did)
		var ln net.Listener
		one := some[0].Host
		if err := one.Within(func() (err error) { ln, err = net.Listen("tcp", one.IP+":0"); return err }); err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		from := map[string]func(func() error) error{netns.Clients: func(f func() error) error { return f() }}
		for _, n := range others {
			from[n.Host.IP] = n.Host.Within
		}
		for ip, within := range from {
			err := within(func() error {
				d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
				c, err := d.Dial("tcp", ln.Addr().String())
				if err == nil {
					_ = c.Close()
				}
				return err
			})
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%q: a connection to it from %s says %v", did, ip, err)
			}
		}
	})
}

// loses: some datagrams arrive, and others do not.
func loses(t *testing.T, g *ground) {
	g.under(t, "loss", 1, func(did string) {
		a, b := g.c.Nodes[0].Host, g.c.Nodes[1].Host
		var from, to net.PacketConn
		for h, c := range map[*netns.Host]*net.PacketConn{a: &from, b: &to} {
			if err := h.Within(func() (err error) { *c, err = net.ListenPacket("udp", h.IP+":0"); return err }); err != nil {
				t.Fatal(err)
			}
			defer (*c).Close()
		}
		// One at a time, so that no buffer is full: the loss is the fault's.
		const packets = 400
		arrived := 0
		for range packets {
			if _, err := from.WriteTo([]byte("x"), to.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			if err := to.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := to.ReadFrom(make([]byte, 1)); err == nil {
				arrived++
			}
		}
		// What came after its deadline was read in the place of a later one.
		if arrived == 0 || arrived == packets {
			t.Errorf("%q: %d of %d arrived", did, arrived, packets)
		}
	})
}

// sendsSlowly: a stream takes its time.
func sendsSlowly(t *testing.T, g *ground) {
	g.under(t, "slow", 3, func(did string) {
		some, others := g.struck(t, did)
		_, rest, _ := strings.Cut(did, " sends ")
		kbit := 0
		if _, err := fmt.Sscanf(rest, "%d kbit/s", &kbit); err != nil {
			t.Fatal(err)
		}
		const bytes, burst = 48 << 10, 8 << 10
		at := time.Now()
		if err := stream(some[0].Host, others[0].Host, bytes); err != nil {
			t.Fatal(err)
		}
		least := time.Duration(bytes-burst) * 8 * time.Millisecond / time.Duration(kbit)
		if took := time.Since(at); took < least {
			t.Errorf("%q: %d bytes took %v, and not %v", did, bytes, took, least)
		}
	})
}

// delays: every packet of the hosts named is held.
func delays(kind string) proof {
	return func(t *testing.T, g *ground) {
		g.under(t, kind, 1, func(did string) {
			some, others := g.struck(t, did)
			_, rest, _ := strings.Cut(did, ": each packet ")
			a, b, _ := strings.Cut(rest, " to ")
			least, errA := time.ParseDuration(a)
			most, errB := time.ParseDuration(b)
			if err := errors.Join(errA, errB); err != nil || most == 0 {
				t.Fatalf("%q: %v", did, err)
			}
			for _, n := range some {
				at := time.Now()
				if err := stream(others[0].Host, n.Host, 10); err != nil {
					t.Errorf("%q: %v", did, err)
				}
				// The first packets of a connection are three, one after the other.
				if took := time.Since(at); took < 3*least || n.Host.Delayed() < 3 {
					t.Errorf("%q: a stream took %v, and %d packets were held", did, took, n.Host.Delayed())
				}
			}
		})
	}
}
