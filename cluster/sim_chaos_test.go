package cluster

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport/pipenet"
)

// chaosSeeds are the seeds to run: LOCKERD_SIM_SEED alone, or LOCKERD_SIM_SEEDS
// of them, counted from 1.
func chaosSeeds(t *testing.T) []uint64 {
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err != nil && os.Getenv(name) != "" {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	if seed := number("LOCKERD_SIM_SEED"); seed != 0 {
		return []uint64{seed}
	}
	var seeds []uint64
	for range max(number("LOCKERD_SIM_SEEDS"), uint64(rounds(5))/2, 1) {
		seeds = append(seeds, uint64(len(seeds))+1)
	}
	return seeds
}

// simNode is a node and the moment of its death.
type simNode struct {
	*Node
	dead chan struct{}
}

// chaos is a cluster under faults, with clients that do all that clients may.
type chaos struct {
	*sim
	seed        uint64
	rng, sweeps *rand.Rand // of the faults, and of the clean-up
	check       *checker
	over        chan struct{} // closed when clients are to begin nothing new

	mu       sync.Mutex
	alive    map[string]*simNode
	requests []*simRequest
	left     []leftover
	joined   map[string]bool // who was no founder
}

// leftover is what a node has promised to clean up, and cannot if it dies first.
type leftover struct {
	node    *simNode
	release fsm.Release
}

func newChaos(t *testing.T, seed uint64, servers, agents int) *chaos {
	c := &chaos{
		sim:    &sim{t: t, net: pipenet.New(), nodes: make(map[string]*Node), disks: make(map[string]*Stores)},
		seed:   seed,
		rng:    rand.New(rand.NewPCG(seed, 0)),
		sweeps: rand.New(rand.NewPCG(seed, 1<<32)),
		check:  newChecker(t, seed),
		over:   make(chan struct{}),
		alive:  make(map[string]*simNode),
		joined: make(map[string]bool),
	}
	for i := range servers {
		id := fmt.Sprintf("n%d", i+1)
		c.peers = append(c.peers, Server{ID: id, Addr: id + ":1"})
		c.disks[id] = newSimStores(id)
	}
	for i := range agents {
		c.disks[fmt.Sprintf("agent%d", i+1)] = nil
	}
	for _, id := range c.ids() {
		c.boot(id)
	}
	return c
}

// ids are all nodes, up or not, in order.
func (c *chaos) ids() []string { return slices.Sorted(maps.Keys(c.disks)) }

// boot starts a node on what it had on disk.
func (c *chaos) boot(id string) {
	n := &simNode{dead: make(chan struct{})}
	c.configure = func(cfg *Config) {
		dial := cfg.Dial
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			select {
			case <-n.dead:
				return nil, syscall.ENETDOWN
			default:
			}
			return dial(ctx, addr)
		}
		if c.disks[id] == nil {
			_ = cfg.PeerListener.Close()
			cfg.Agent, cfg.PeerListener, cfg.Stores = true, nil, nil
		}
		c.mu.Lock()
		joined := c.joined[id]
		c.mu.Unlock()
		if joined {
			cfg.Servers, cfg.BootstrapExpect, cfg.Join = nil, 1, []string{"of those there are"}
		}
		cfg.nearby = c.nearby
	}
	n.Node = c.start(id)
	if n.raft != nil {
		events, _ := n.Subscribe(1 << 16)
		go c.check.watch(events)
		rc := n.raft.ReloadableConfig()
		rc.TrailingLogs = 8 // so that who was away gets a snapshot
		if err := n.raft.ReloadConfig(rc); err != nil {
			c.t.Fatal(err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[id] = n
}

// kill ends nodes as a power cut does: they say nothing more.
func (c *chaos) kill(ids ...string) {
	var closing sync.WaitGroup
	for _, id := range ids {
		c.mu.Lock()
		n := c.alive[id]
		delete(c.alive, id)
		c.mu.Unlock()
		if n == nil {
			continue
		}
		close(n.dead)
		c.net.Kill(c.addr(id))
		delete(c.nodes, id)
		closing.Go(func() {
			if n.raft != nil {
				// What the node does after its death must not reach its disk later.
				defer func() { _ = n.raft.Shutdown().Error() }()
			}
			if err := n.Close(context.Background()); err != nil {
				c.check.fail("close %s: %v", id, err)
			}
		})
	}
	closing.Wait()
}

// pick chooses a node for a client, waiting for one if all are down.
func (c *chaos) pick(rng *rand.Rand) *simNode {
	for {
		c.mu.Lock()
		ids := slices.Sorted(maps.Keys(c.alive))
		var n *simNode
		if len(ids) > 0 {
			n = c.alive[ids[rng.IntN(len(ids))]]
		}
		c.mu.Unlock()
		if n != nil {
			return n
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *chaos) stopping() bool {
	select {
	case <-c.over:
		return true
	case <-c.check.stop:
		return true
	default:
		return false
	}
}

func (c *chaos) opened(r *simRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, r)
}

func (c *chaos) abandoned(n *simNode, r fsm.Release) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, leftover{n, r})
}

// describe says what the cluster knows of a request.
func (c *chaos) describe(r *simRequest) string {
	l := r.node.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	s := fmt.Sprintf("%v; claim %v fence %d ended %v; ledger: node %d, %d open, %d early, %d claims, routed %v",
		r.a.Locks, r.claim.ask, r.claim.fence, r.claim.ended, l.node, len(l.open), len(l.early), len(l.claims), l.route != nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, n := range c.alive {
		if n.replica != nil {
			n.replica.view(func(m *fsm.Machine) {
				h, w := m.Claim(r.claim.ask)
				s += fmt.Sprintf("; %s: holds %v, waits %v;", id, h != nil, w != nil)
				for _, name := range r.a.Locks {
					for _, h := range m.Holders(name) {
						s += fmt.Sprintf(" %s is held by %v of %s as fence %d", name, h.Ask, h.Owner, h.Fence)
					}
				}
			})
			break
		}
	}
	return s
}

// strike does one fault, and undoes it after a while if it is not one that passes.
func (c *chaos) strike() {
	ids := c.ids()
	one := ids[c.rng.IntN(len(ids))]
	if c.rng.IntN(2) == 0 {
		for id, n := range c.nodes {
			if n.office.Load() != nil {
				one = id
			}
		}
	}
	other := ids[c.rng.IntN(len(ids))]
	awhile := time.Duration(c.rng.IntN(4000)) * time.Millisecond
	if c.rng.IntN(6) == 0 {
		awhile = 11*time.Second + 3*awhile // incarnations are given up
	}
	switch c.rng.IntN(10) {
	case 0, 1:
		c.check.tally("isolations")
		c.net.Isolate(one + ":1")
		time.Sleep(awhile)
		c.net.Heal()
	case 2, 3:
		c.check.tally("cuts")
		c.net.Cut(one+":1", other+":1")
		time.Sleep(awhile)
		c.net.Heal()
	case 4, 5:
		c.check.tally("crashes")
		c.kill(one)
		if c.rng.IntN(2) == 0 {
			time.Sleep(awhile)
		}
		c.boot(one)
	case 6:
		c.check.tally("crashes of all")
		c.kill(ids...)
		for _, id := range ids {
			c.boot(id)
		}
	case 7:
		c.check.tally("transfers")
		c.transfer(c.pick(c.rng).Node, []string{"", c.peers[c.rng.IntN(len(c.peers))].ID}[c.rng.IntN(2)])
	case 8:
		// Who is away meanwhile has to be sent the snapshot.
		c.check.tally("snapshots")
		c.net.Isolate(other + ":1")
		time.Sleep(awhile)
		for _, id := range ids {
			if n := c.nodes[id]; n.raft != nil {
				_ = n.raft.Snapshot().Error()
			}
		}
		time.Sleep(awhile)
		c.net.Heal()
	case 9:
		if g := c.check.live(c.rng.IntN(4)); g != nil {
			c.check.losing(g, "broken")
			c.check.tally("breaks")
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			_, _ = c.pick(c.rng).Submit(ctx, fsm.Break{Locks: g.locks[:1], Fence: g.fence, By: "chaos"})
			cancel()
		}
	}
}

// sweep does for dead nodes what they had promised.
func (c *chaos) sweep(ctx context.Context) {
	c.mu.Lock()
	var left, dead []leftover
	for _, l := range c.left {
		select {
		case <-l.node.dead:
			dead = append(dead, l)
		default:
			left = append(left, l)
		}
	}
	c.left = left
	c.mu.Unlock()
	for _, l := range dead {
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 20*time.Second)
			_, err := c.pick(c.sweeps).Submit(try, l.release)
			cancel()
			if err == nil {
				break
			}
		}
	}
}

// settle waits until the faults' traces have gone, and checks that they have.
func (c *chaos) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c.sweep(ctx)
	time.Sleep(30 * time.Second) // for incarnations to be given up, and all to come to rest
	c.converge()
	written := c.leader().replica.appliedIndex()
	time.Sleep(3 * time.Second)
	if now := c.leader().replica.appliedIndex(); now != written {
		c.check.fail("%d entries were written at rest", now-written)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		select {
		case <-r.node.dead:
			continue
		default:
		}
		if g, waiting, ended := r.state(); waiting && !ended && g == nil && !r.quiet {
			c.check.fail("%s by %s was never told its end", r.who, r.node.Name())
		}
	}
	for id, n := range c.alive {
		l := n.ledger
		l.mu.Lock()
		if len(l.open)+len(l.early) > 0 {
			c.check.fail("%s: %d requests open and %d early; routed %v, leader %+v", id, len(l.open), len(l.early), l.route != nil, n.leader())
			for _, o := range l.open {
				c.check.fail("%s: open: %d %T %+v, sent %d times", id, o.seq, o.command, o.command, o.sent)
			}
		}
		l.mu.Unlock()
		if n.replica == nil {
			continue
		}
		n.replica.view(func(m *fsm.Machine) {
			if err := m.Check(); err != nil {
				c.check.fail("%s: %v", id, err)
			}
			count := m.Counts()
			if count.Holds+count.Waits+count.Locks > 0 {
				c.check.fail("%s: left over: %+v", id, count)
			}
			if count.Nodes != len(c.alive) {
				c.check.fail("%s: %d incarnations of %d nodes", id, count.Nodes, len(c.alive))
			}
		})
	}
	now, snap := c.leader().replica.snapshot()
	for _, h := range snap.Holds() {
		c.check.fail("left over at %d: hold %+v", now, h)
	}
	for _, w := range snap.Waits() {
		c.check.fail("left over at %d: wait %+v", now, w)
	}
	c.check.conclude()
}

func runChaos(t *testing.T, seed uint64, servers, agents, clients int, d time.Duration) {
	bubble(t, func(t *testing.T) {
		c := newChaos(t, seed, servers, agents)
		defer c.close()
		ctx, cancel := context.WithTimeout(context.Background(), d+10*time.Minute)
		defer cancel()
		c.leader()
		var running, sweeping sync.WaitGroup
		done := make(chan struct{})
		sweeping.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Second):
					c.sweep(ctx)
				}
			}
		})
		for i := range clients {
			cl := &simClient{chaos: c, rng: rand.New(rand.NewPCG(seed, uint64(i)+1)), name: fmt.Sprintf("c%d", i)}
			running.Go(func() { cl.run(ctx) })
		}
		for end := time.Now().Add(d); time.Now().Before(end) && !c.stopping(); {
			time.Sleep(time.Duration(c.rng.IntN(3000)) * time.Millisecond)
			c.strike()
		}
		close(c.over)
		c.net.Heal()
		running.Wait()
		for range 2 { // while nobody asks for anything
			c.strike()
		}
		c.net.Heal()
		close(done)
		sweeping.Wait()
		if !t.Failed() {
			c.settle()
		}
		t.Logf("seed %d: %v", seed, c.check.count)
	})
}

// TestSimulatedChaos has clients ask for locks in every way there is while nodes
// crash, networks part and leaders change, and holds what they are told against
// what a lock service may say. A failure names its seed; LOCKERD_SIM_SEED=n runs that alone.
// The seed gives the scenario, not the schedule of goroutines: a rare one may need
// several runs (-count).
func TestSimulatedChaos(t *testing.T) {
	shapes := []struct {
		name                     string
		servers, agents, clients int
	}{
		{"three servers", 3, 0, 12},
		{"three servers and agents", 3, 2, 12},
		{"five servers", 5, 0, 12},
	}
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			for _, seed := range chaosSeeds(t) {
				runChaos(t, seed, s.servers, s.agents, s.clients, 90*time.Second)
				if t.Failed() {
					return
				}
			}
		})
	}
}
