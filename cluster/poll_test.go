package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
)

// aliasRemote is the real thing, but for names: they lead to a loopback address
// where a pidstatd of the test's listens.
type aliasRemote struct {
	*pidstats
	alias map[string]netip.Addr
}

func (r aliasRemote) Lookup(_ context.Context, host string) ([]netip.Addr, error) {
	if a, ok := r.alias[host]; ok {
		return []netip.Addr{a}, nil
	}
	return nil, errors.New("no such host")
}

// TestThePidstatdOfAHostWithoutANode kills processes of a host that has no node but
// an old pidstatd, a holder and a waiter, beside one that lives.
func TestThePidstatdOfAHostWithoutANode(t *testing.T) {
	conn, err := pidprobe.Listen(t.Context(), "127.0.0.2", 0)
	must(t, err)
	server, err := pidprobe.NewServer(conn, pidprobe.ServerConfig{Name: "far.example"})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var serving sync.WaitGroup
	serving.Go(func() { must(t, server.Serve(ctx)) })
	defer serving.Wait()
	defer cancel()

	port := server.Addr().Port
	at := netip.MustParseAddr("127.0.0.2")
	f := newFarm(t, 1, func(c *Config) {
		c.PidstatPort = port
		c.Remote = func() (Remote, error) {
			p, err := newPidstats(uint16(port), true)
			return aliasRemote{p, map[string]netip.Addr{"far.example": at}}, err
		}
	})
	n := f.nodes[0]

	var cmds []interface{ Kill() error }
	var procs []fsm.Process
	for range 3 {
		cmd, p := sleeper(t)
		// As IPC::Locker names it, and as lockersh would.
		p.Host, p.Start, p.Boot = "far.example", 0, ""
		cmds, procs = append(cmds, cmd.Process), append(procs, p)
	}
	procs[1].Start, procs[1].Boot = 7, "4a1d9b60-0000-4000-8000-000000000000/"+initialNamespace
	lock := func(owner, name string, p fsm.Process) *simWaiter {
		t.Helper()
		w := &simWaiter{owner: owner, node: n, told: make(chan struct{})}
		res := n.mustAcquire(t, fsm.Acquire{Owner: owner, Locks: []string{name}, Block: true, Process: p, Autounlock: p.PID != 0}, w.notify)
		if res.Code != fsm.Granted && res.Code != fsm.Queued {
			t.Fatalf("%+v", res)
		}
		return w
	}
	lock("dies", "a", procs[0])
	lock("holds", "b", fsm.Process{})
	lock("dies in the queue", "b", procs[1])
	lock("lives", "c", procs[2])
	next := lock("next", "a", fsm.Process{})
	asked := func() uint64 { return server.Stats().Asked }
	must(t, waitUntil("questions for the living", func() bool { return asked() >= 3 }))
	for _, l := range []string{"a", "c"} {
		if h := (tableOf{t, n}).holder(l); h == "" || h == "next" {
			t.Fatalf("%s is %q's", l, h)
		}
	}
	for _, c := range cmds[:2] {
		must(t, c.Kill())
	}
	next.fence(ctx, t)
	must(t, waitUntil("the end of a wait", func() bool { return tableOf{t, n}.queueLen("b") == 0 }))
	before := asked()
	must(t, waitUntil("more questions", func() bool { return asked() > before+1 }))
	if h := (tableOf{t, n}).holder("c"); h != "lives" {
		t.Fatalf("c is %q's", h)
	}
}

// echo is a Remote of a simulation. It answers at once.
type echo struct {
	mu      sync.Mutex
	asks    []echoed
	dead    map[int32]bool
	answers chan echoed
	closed  bool
}

type echoed struct {
	at  netip.Addr
	pid int32
	t   time.Time
}

// Lookup knows hosts h0 to h255.
func (e *echo) Lookup(_ context.Context, host string) ([]netip.Addr, error) {
	var i byte
	if _, err := fmt.Sscanf(host, "h%d", &i); err != nil {
		return nil, err
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, i})}, nil
}

func (e *echo) Ask(_ context.Context, at netip.Addr, pid int32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return net.ErrClosed
	}
	q := echoed{at, pid, time.Now()}
	e.asks = append(e.asks, q)
	if e.dead[pid] {
		e.answers <- q
	}
	return nil
}

func (e *echo) Receive(ctx context.Context) (netip.Addr, int32, error) {
	select {
	case q := <-e.answers:
		return q.at, q.pid, nil
	case <-ctx.Done():
		return netip.Addr{}, 0, ctx.Err()
	}
}

func (e *echo) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return nil
}

func (e *echo) kill(pid int32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dead[pid] = true
}

// since returns the questions after a moment.
func (e *echo) since(from time.Time) (list []echoed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, q := range e.asks {
		if q.t.After(from) {
			list = append(list, q)
		}
	}
	return list
}

// TestSimulatedPolls counts the questions of a leader: each process is asked for
// once a second if there are few, in turn at 100 a second if there are many, and by
// nobody who does not lead.
func TestSimulatedPolls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0)
		remotes := make(map[string][]*echo)
		none := newMortality()
		var mu sync.Mutex
		s.configure = func(c *Config) {
			c.Host, c.PidstatPort = c.Name, 0
			c.Processes = func(dead func(pidprobe.Process), _ func(error)) (Processes, error) { return none.watcher(dead), nil }
			c.Remote = func() (Remote, error) {
				mu.Lock()
				defer mu.Unlock()
				e := &echo{dead: make(map[int32]bool), answers: make(chan echoed, 1000)}
				remotes[c.Name] = append(remotes[c.Name], e)
				return e, nil
			}
		}
		last := func(n *Node) *echo {
			mu.Lock()
			defer mu.Unlock()
			if l := remotes[n.Name()]; len(l) > 0 {
				return l[len(l)-1]
			}
			t.Fatalf("%s has asked nobody", n.Name())
			return nil
		}
		s.grow(3)
		defer s.close()
		leader := s.leader()
		hold := func(i int, p fsm.Process) fsm.Fence {
			t.Helper()
			res := leader.mustAcquire(t, fsm.Acquire{Owner: fmt.Sprint("o", i), Locks: []string{fmt.Sprint("l", i)}, Process: p, Autounlock: true}, func(fsm.Event) {})
			if res.Code != fsm.Granted {
				t.Fatalf("%+v", res)
			}
			return res.Fence
		}
		far := func(i int) fsm.Process { return fsm.Process{Host: fmt.Sprint("h", i%200), PID: int32(i + 1)} }
		for i := range 5 {
			hold(i, far(i))
		}
		// None of these may be asked for: hosts of members, this boot, a container,
		// two boots of one name, and a name that leads nowhere.
		for i, p := range []fsm.Process{
			{Host: "n2", PID: 9001},
			{Host: "n3.example", PID: 9002},
			{Host: "h9", PID: 9003, Boot: leader.liveness.place.Boot},
			{Host: "h9", PID: 9004, Boot: "b/4026532000"},
			{Host: "h250", PID: 9005, Boot: "b1"},
			{Host: "h250", PID: 9006, Boot: "b2"},
			{Host: "nowhere", PID: 9007},
		} {
			hold(9000+i, p)
		}
		time.Sleep(pollGrace + 5*time.Second)

		count := func(from time.Time, e *echo) map[int32]int {
			t.Helper()
			per := make(map[int32]int)
			var before time.Time
			for _, q := range e.since(from) {
				per[q.pid]++
				if q.pid > 9000 {
					t.Errorf("asked for process %d", q.pid)
				}
				if !before.IsZero() && q.t.Sub(before) < pollGap {
					t.Errorf("%v between two questions", q.t.Sub(before))
				}
				before = q.t
			}
			return per
		}
		from := time.Now()
		time.Sleep(20 * time.Second)
		few := count(from, last(leader))
		for pid := int32(1); pid <= 5; pid++ {
			if n := few[pid]; n < 16 || n > 20 {
				t.Errorf("process %d of a few: asked for %d times in 20 s", pid, n)
			}
		}

		const many = 500
		for i := 5; i < many; i++ {
			hold(i, far(i))
		}
		time.Sleep(10 * time.Second)
		from = time.Now()
		time.Sleep(50 * time.Second)
		per, total := count(from, last(leader)), 0
		for i := range many {
			n := per[int32(i+1)]
			total += n
			if n < 8 || n > 11 {
				t.Errorf("process %d of many: asked for %d times in 50 s", i+1, n)
			}
		}
		t.Logf("%d questions in 50 s", total)
		if total > 5000 || total < 4900 {
			t.Errorf("%d questions in 50 s", total)
		}

		// A node goes, and what it watched is asked for from then on.
		var goner *Node
		for _, n := range s.nodes {
			if n != leader {
				goner = n
			}
		}
		hold(9500, fsm.Process{Host: goner.Name(), PID: 9500})
		if p := leader.polls.Load(); p.size() != many+4 {
			t.Errorf("%d processes in the list", p.size())
		}
		s.net.Isolate(goner.Name() + ":1")
		time.Sleep(pollScan + 10*time.Second)
		if p := leader.polls.Load(); p.size() < many+5 {
			t.Errorf("%d processes in the list, after a node has gone", p.size())
		}
		s.net.Heal()
		time.Sleep(10 * time.Second)

		// One dies.
		last(leader).kill(7)
		time.Sleep(many*pollGap + time.Second)
		if h := (tableOf{t, leader}).holder("l6"); h != "" {
			t.Errorf("the dead process's lock is %q's", h)
		}
		if h := (tableOf{t, leader}).holder("l7"); h == "" {
			t.Error("a living process's lock is gone")
		}

		// The next leader goes on, and the last one ends.
		old := last(leader)
		s.net.Isolate(leader.Name() + ":1")
		time.Sleep(10 * time.Second)
		from = time.Now()
		was := leader
		for _, n := range s.nodes {
			if n != was && n.office.Load() != nil {
				leader = n
			}
		}
		if leader == was {
			t.Fatal("no new leader")
		}
		time.Sleep(10 * time.Second)
		if n := len(old.since(from)); n != 0 || !old.closed {
			t.Errorf("%d questions by a leader that was, closed: %v", n, old.closed)
		}
		if n := len(last(leader).since(from)); n < 900 || n > 1000 {
			t.Errorf("%d questions in 10 s by the new leader", n)
		}
		s.net.Heal()
		// Nothing to ask for any more.
		table, err := leader.Table(t.Context(), false)
		must(t, err)
		for _, h := range table.Holds {
			_, err := leader.Submit(t.Context(), fsm.Release{Fence: h.Fence})
			must(t, err)
		}
		time.Sleep(time.Second)
		p := leader.polls.Load()
		p.mu.Lock()
		defer p.mu.Unlock()
		if left := len(p.all) + len(p.ring) + len(p.pids) + len(p.fences) + len(p.tickets) + len(p.hosts) + p.lookups; left != 0 {
			t.Errorf("left behind: %d", left)
		}
	})
}

func (p *polls) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ring)
}

// TestOthers: where a name may lead for a question to be asked.
func TestOthers(t *testing.T) {
	own := []net.Addr{
		&net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)},
		&net.IPNet{IP: net.IPv4(10, 1, 1, 1), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.ParseIP("fd00::1"), Mask: net.CIDRMask(64, 128)},
	}
	addrs := func(list ...string) (found []netip.Addr) {
		for _, a := range list {
			found = append(found, netip.MustParseAddr(a))
		}
		return found
	}
	for _, c := range []struct {
		found   []netip.Addr
		watches bool
		want    []netip.Addr
	}{
		{addrs("10.1.1.2"), true, addrs("10.1.1.2")},
		{addrs("::ffff:10.1.1.2"), true, addrs("10.1.1.2")},
		{addrs("fd00::2", "10.1.1.2", "10.1.1.3"), true, addrs("10.1.1.2", "10.1.1.3")},
		{addrs("fd00::2"), true, addrs("fd00::2")},
		{addrs("127.0.0.1"), false, nil},
		{addrs("127.0.1.1"), false, nil},
		{addrs("::1"), false, nil},
		{addrs("10.1.1.2", "127.0.1.1"), false, nil},
		{addrs("0.0.0.0"), false, nil},
		{addrs("10.1.1.1"), true, nil},
		{addrs("10.1.1.2", "fd00::1"), true, nil},
		{addrs("::ffff:10.1.1.1"), true, nil},
		{addrs("10.1.1.1"), false, addrs("10.1.1.1")},
	} {
		got, err := others(c.found, own, c.watches)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%v, watched %v: %v, %v", c.found, c.watches, got, err)
		}
	}
	// The real resolver and the real addresses.
	p, err := newPidstats(1, true)
	must(t, err)
	defer p.Close()
	if got, err := p.Lookup(t.Context(), "localhost"); !errors.Is(err, errThisHost) {
		t.Errorf("localhost: %v, %v", got, err)
	}
	if got, err := p.Lookup(t.Context(), "192.0.2.7"); err != nil || !slices.Equal(got, addrs("192.0.2.7")) {
		t.Errorf("an address: %v, %v", got, err)
	}
}

// TestAnswersMustFit: a death is believed of the process that was asked for, where
// it was asked for, and if its name has several addresses, once all have said so.
func TestAnswersMustFit(t *testing.T) {
	p := newPolls(&Node{liveness: &liveness{place: place{Boot: "own/1"}}, peers: newPeers()})
	hold := func(q fsm.Process, f fsm.Fence) { p.fill([]charge{{Fence: f, Process: q}}) }
	one, two := fsm.Process{Host: "one", PID: 5}, fsm.Process{Host: "two", PID: 5, Boot: "b"}
	hold(one, 1)
	hold(two, 2)
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	p.hosts["one"].addrs = []netip.Addr{a}
	p.hosts["two"].addrs = []netip.Addr{b, c}
	for _, h := range p.hosts {
		h.until = time.Now().Add(time.Hour)
	}
	expect := func(at netip.Addr, pid int32, want ...fsm.Process) {
		t.Helper()
		if got := p.answered(at, pid); !slices.Equal(got, want) {
			t.Errorf("%v says that %d is dead: %v, want %v", at, pid, got, want)
		}
	}
	expect(a, 5) // nobody has asked
	for range 2 {
		for _, q := range []fsm.Process{one, two} {
			if _, ok := p.address(q); !ok {
				t.Fatalf("%v is not asked for", q)
			}
		}
	}
	expect(a, 6)
	expect(netip.MustParseAddr("10.0.0.4"), 5)
	expect(b, 5)
	expect(b, 5)
	expect(a, 5, one)
	expect(c, 5, two)

	// What is new may be another process's, which has the number since.
	charged := func(q fsm.Process, want ...fsm.Fence) {
		t.Helper()
		if gone, _ := p.charged(q); !slices.Equal(gone.Fences, want) {
			t.Errorf("%v takes %v with it, want %v", q, gone.Fences, want)
		}
	}
	charged(one)
	p.all[one].fences[1] = time.Now().Add(-2 * pollFresh)
	p.all[two].fences[2] = time.Now().Add(-2 * pollFresh)
	hold(one, 4)
	charged(one, 1)
	charged(two, 2)
	p.all[two].dead[b] = time.Now().Add(-3 * pollFresh) // it lives there now
	expect(c, 5, two)
	charged(two)
	p.note([]fsm.Event{{Kind: fsm.EventReleased, Fence: 4}})
	p.all[one].asked = time.Now().Add(-2 * pollFresh)
	expect(a, 5) // too late

	// A second boot under the name: whose numbers are they?
	hold(fsm.Process{Host: "two", PID: 6, Boot: "c"}, 3)
	if _, ok := p.address(two); ok {
		t.Error("asked for a process of one of two hosts of a name")
	}
	p.note([]fsm.Event{{Kind: fsm.EventReleased, Fence: 3}})
	if _, ok := p.address(two); !ok {
		t.Error("not asked any more, although there is one host of that name")
	}

	for i := range maxRemotes + 10 {
		hold(fsm.Process{Host: fmt.Sprint("x", i), PID: 1}, fsm.Fence(100+i))
	}
	if len(p.hosts) > maxRemotes {
		t.Errorf("%d hosts are known", len(p.hosts))
	}
}
