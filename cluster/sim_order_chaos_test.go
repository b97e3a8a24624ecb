package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport/pipenet"
)

const (
	chaosGrace = 2 * time.Second // Config.OrderGrace by default

	// slowestThaw is how long a thaw takes at most in the chaos.
	slowestThaw = 200 * time.Millisecond

	// chaosSlack is what may come on top of the grace: a thaw, and rounding.
	chaosSlack = slowestThaw + 50*time.Millisecond
)

// orderChaos is a cluster under faults, with people who give orders, and what the
// table has made of them.
type orderChaos struct {
	*orderSim
	rng *rand.Rand // of the faults

	mu     sync.Mutex
	dead   map[string]chan struct{} // closed when the node that runs dies
	story  map[fsm.OrderID]*orderStory
	counts map[string]int
}

// orderStory is when the first replica learned of an order's events.
type orderStory struct {
	at   map[fsm.EventKind]time.Time
	last *fsm.Order
}

func newOrderChaos(t *testing.T, seed uint64) *orderChaos {
	c := &orderChaos{
		orderSim: &orderSim{
			sim:   &sim{t: t, net: pipenet.New(), nodes: make(map[string]*Node), disks: make(map[string]*Stores)},
			execs: make(map[string]*fakeExecutor),
		},
		rng:  rand.New(rand.NewPCG(seed, 7)),
		dead: make(map[string]chan struct{}), story: make(map[fsm.OrderID]*orderStory), counts: make(map[string]int),
	}
	for i := range 3 {
		id := fmt.Sprintf("n%d", i+1)
		c.peers = append(c.peers, Server{ID: id, Addr: id + ":1"})
		c.disks[id] = newSimStores(id)
	}
	for i, id := range []string{"n1", "n2", "n3", "agent1", "agent2"} {
		c.boot(id, rand.New(rand.NewPCG(seed, 100+uint64(i))))
	}
	c.joined()
	return c
}

// boot starts a node on what it had on disk, with a new executor.
func (c *orderChaos) boot(id string, rng *rand.Rand) {
	dead := make(chan struct{})
	c.configure = func(cfg *Config) {
		x := newFakeExecutor(id)
		x.rng = rng
		cfg.Executor = x
		cfg.Dial = mortal(dead, cfg.Dial)
		if c.disks[id] == nil {
			_ = cfg.PeerListener.Close()
			cfg.Agent, cfg.PeerListener, cfg.Stores = true, nil, nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.execs[id], c.all, c.dead[id] = x, append(c.all, x), dead
	}
	n := c.start(id)
	c.mu.Lock()
	c.nodes[id] = n
	c.mu.Unlock()
	if n.raft == nil {
		return
	}
	rc := n.raft.ReloadableConfig()
	rc.TrailingLogs = 8
	if err := n.raft.ReloadConfig(rc); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		for n.ctx.Err() == nil {
			events, _ := n.Subscribe(1 << 12)
			for e := range events {
				if e.OfOrder() {
					c.learn(e)
				}
			}
		}
	}()
}

func (c *orderChaos) learn(e fsm.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.story[e.Order.ID]
	if s == nil {
		s = &orderStory{at: make(map[fsm.EventKind]time.Time)}
		c.story[e.Order.ID] = s
	}
	if _, ok := s.at[e.Kind]; !ok {
		s.at[e.Kind] = time.Now()
	}
	if s.last == nil || s.last.State < e.Order.State {
		s.last = e.Order
	}
}

func (c *orderChaos) tally(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// crash ends a node as a power cut does: what guards its freezes goes with it, and it
// says nothing more.
func (c *orderChaos) crash(id string) {
	c.mu.Lock()
	n, x := c.nodes[id], c.execs[id]
	close(c.dead[id])
	delete(c.nodes, id)
	c.mu.Unlock()
	x.die()
	c.net.Kill(c.addr(id))
	if n.raft != nil {
		defer func() { _ = n.raft.Shutdown().Error() }()
	}
	if err := n.Close(context.Background()); err != nil {
		c.t.Errorf("close %s: %v", id, err)
	}
}

// die has the guards see that nobody is there any more.
func (x *fakeExecutor) die() {
	x.mu.Lock()
	x.broken, x.refuse = errors.New("dead"), errors.New("dead")
	list := slices.Clone(x.spans)
	x.mu.Unlock()
	for _, f := range list {
		f.undo("died")
	}
}

func (c *orderChaos) pick(rng *rand.Rand) *Node {
	for {
		c.mu.Lock()
		n := c.nodes[[]string{"n1", "n2", "n3", "agent1", "agent2"}[rng.IntN(5)]]
		c.mu.Unlock()
		if n != nil {
			return n
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// strike does one fault, and undoes it.
func (c *orderChaos) strike() {
	ids := []string{"n1", "n2", "n3", "agent1", "agent2"}
	one, other := ids[c.rng.IntN(5)], ids[c.rng.IntN(5)]
	if c.rng.IntN(3) == 0 {
		for _, id := range ids {
			if c.nodes[id].office.Load() != nil {
				one = id
			}
		}
	}
	awhile := time.Duration(c.rng.IntN(4000)) * time.Millisecond
	if c.rng.IntN(8) == 0 {
		awhile += 11 * time.Second // incarnations are given up
	}
	switch c.rng.IntN(7) {
	case 0, 1:
		c.tally("isolations")
		c.net.Isolate(c.addr(one))
		time.Sleep(awhile)
		c.net.Heal()
	case 2:
		c.tally("cuts")
		c.net.Cut(c.addr(one), c.addr(other))
		time.Sleep(awhile)
		c.net.Heal()
	case 3, 4:
		c.tally("crashes")
		c.crash(one)
		if c.rng.IntN(2) == 0 {
			time.Sleep(awhile)
		}
		c.boot(one, rand.New(rand.NewPCG(c.rng.Uint64(), 0)))
	case 5:
		c.tally("transfers")
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		_, _ = c.pick(c.rng).Transfer(ctx, "")
		cancel()
	case 6:
		c.tally("snapshots")
		c.net.Isolate(c.addr(other))
		time.Sleep(awhile)
		for _, id := range ids[:3] {
			_ = c.nodes[id].raft.Snapshot().Error()
		}
		c.net.Heal()
	}
}

// command has one person give orders until ctx ends.
func (c *orderChaos) command(ctx context.Context, rng *rand.Rand, who string) {
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		c.give(rng, fmt.Sprintf("%s-%d", who, i))
	}
}

func (c *orderChaos) give(rng *rand.Rand, who string) {
	n := c.pick(rng)
	r := OrderRequest{Action: "freeze", Attached: rng.IntN(2) == 0, TimeoutMS: int64(rng.IntN(4)) * 1500}
	if r.TimeoutMS == 0 {
		r.TimeoutMS = -1
	}
	for _, id := range []string{"n1", "n2", "n3", "agent1", "agent2"} {
		if rng.IntN(3) == 0 {
			r.Nodes = append(r.Nodes, id)
		}
	}
	r.All = len(r.Nodes) == 0
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rng.IntN(12))*time.Second)
	defer cancel()
	if rng.IntN(4) == 0 {
		_, res, err := n.Acquire(ctx, fsm.Acquire{Owner: who, Locks: []string{who}}, func(fsm.Event) {})
		if err == nil && res.Code == fsm.Granted {
			r.Fence, r.ReleaseLock = uint64(res.Fence), true
		}
	}
	id, err := n.OpenOrder(ctx, r, who)
	if err != nil {
		c.tally("orders refused")
		c.giveUp(rng, who)
		return
	}
	c.tally("orders")
	o := OrderInfo{}
	for err == nil && o.State != "frozen" && o.State != "closed" {
		o, err = n.FollowOrder(ctx, id, o.State)
	}
	c.tally("orders " + o.State)
	time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
	switch {
	case r.Attached:
		n.AbandonOrder(id) // if n has died, the table does
	case rng.IntN(2) == 0:
		_, _ = c.pick(rng).Thaw(ctx, ThawRequest{ID: id}, who)
	}
}

// giveUp sees to it that a lock is released for which there may be no order.
func (c *orderChaos) giveUp(rng *rand.Rand, who string) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		_, err := c.pick(rng).Submit(ctx, fsm.Release{Owner: who, Locks: []string{who}})
		cancel()
		if err == nil {
			return
		}
	}
}

// settle waits for everything to come to rest, and judges.
func (c *orderChaos) settle() {
	time.Sleep(15 * time.Second) // for incarnations to be given up
	// What is open still is what nobody has ended and has no end.
	leader := c.leader()
	open, err := leader.Orders(context.Background(), false)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, o := range open {
		if o.Attached || o.TimeoutMS != -1 || o.State != "frozen" {
			c.t.Errorf("has not ended: %+v", o)
		}
	}
	if _, err := leader.Thaw(context.Background(), ThawRequest{All: true}, "the end"); err != nil {
		c.t.Error(err)
	}
	time.Sleep(2 * time.Second)
	leader.replica.view(func(m *fsm.Machine) {
		if err := m.Check(); err != nil {
			c.t.Error(err)
		}
		if open, _ := m.Orders(); len(open) > 0 {
			c.t.Errorf("left open: %+v", *open[0])
		}
		if n := m.Counts(); n.Holds != 0 {
			c.t.Errorf("%d holds are left", n.Holds)
		}
	})
	for id, n := range c.nodes {
		n.orders.mu.Lock()
		if len(n.orders.duties) > 0 {
			c.t.Errorf("%s has %d duties left", id, len(n.orders.duties))
		}
		n.orders.mu.Unlock()
	}
	c.judge()
}

// judge holds what the executors did against what the table says.
func (c *orderChaos) judge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	prepared := make(map[fsm.OrderID]map[string]time.Time)
	for _, x := range c.all {
		for _, f := range x.freezes() {
			id := fsm.OrderID(f.task.Order)
			if prepared[id] == nil {
				prepared[id] = make(map[string]time.Time)
			}
			prepared[id][x.name] = f.prepared
		}
	}
	for _, x := range c.all {
		seen := make(map[uint64]bool)
		for _, f := range x.freezes() {
			if seen[f.task.Order] {
				c.t.Errorf("%s has begun order %d twice", x.name, f.task.Order)
			}
			seen[f.task.Order] = true
			if !f.frozen.IsZero() {
				c.counts["freezes"]++
				c.judgeFreeze(x.name, f, prepared[fsm.OrderID(f.task.Order)])
			}
		}
	}
	for id, s := range c.story {
		if s.last.State != fsm.OrderClosed {
			c.t.Errorf("order %d is %v", id, s.last.State)
			continue
		}
		c.counts["ended: "+s.last.Reason.String()]++
	}
}

func (c *orderChaos) judgeFreeze(node string, f fakeFreeze, prepared map[string]time.Time) {
	s := c.story[fsm.OrderID(f.task.Order)]
	fail := func(format string, args ...any) {
		c.t.Errorf("order %d at %s: %s; frozen %v, thawed %v (%s); %+v", f.task.Order, node, fmt.Sprintf(format, args...), f.frozen, f.thawed, f.cause, s.at)
	}
	gone, ok := s.at[fsm.EventOrderFreezing]
	if !ok || f.frozen.Before(gone) {
		fail("frozen before all were ready")
	}
	for _, p := range s.last.Parts {
		if at, ok := prepared[p.Name]; !ok || at.After(f.frozen) {
			fail("frozen before %s was prepared", p.Name)
		}
	}
	if f.thawed.IsZero() {
		fail("never thawed")
		return
	}
	ended := s.at[fsm.EventOrderEnded]
	if f.thawed.After(ended) && f.thawed.Sub(ended) > chaosGrace+chaosSlack {
		fail("frozen for %v after the order had ended", f.thawed.Sub(ended))
	}
	if at, ok := s.at[fsm.EventOrderFrozen]; ok && f.frozen.After(at) {
		fail("frozen after the order was")
	}
	part := s.last.Parts[slices.IndexFunc(s.last.Parts, func(p *fsm.OrderPart) bool { return p.Name == node })]
	if f.thawed.Before(ended) {
		switch {
		case f.cause == "deadline" && f.thawed.Sub(f.frozen) >= f.task.Timeout:
		case f.cause == "died":
		case part.Cause == fsm.ThawQuorum || part.Cause == fsm.ThawGone:
			c.counts["thawed out of touch"]++
		default:
			fail("thawed %v before the end, by cause %v", ended.Sub(f.thawed), part.Cause)
		}
	}
}

// TestSimulatedOrderChaos has people give orders while nodes crash, networks part and
// leaders change, and holds what was frozen and when against the rules: nothing before
// all are ready; nothing for longer than the grace after the end; nothing thawed before
// the end, but by its own deadline, by a death, or out of touch; every order is closed.
func TestSimulatedOrderChaos(t *testing.T) {
	for _, seed := range chaosSeeds(t) {
		bubble(t, func(t *testing.T) {
			c := newOrderChaos(t, seed)
			defer c.close()
			ctx, cancel := context.WithCancel(context.Background())
			var people sync.WaitGroup
			for i := range 4 {
				rng := rand.New(rand.NewPCG(seed, 1000+uint64(i)))
				people.Go(func() { c.command(ctx, rng, fmt.Sprint("p", i)) })
			}
			for end := time.Now().Add(time.Duration(rounds(90)) * time.Second); time.Now().Before(end); {
				time.Sleep(time.Duration(c.rng.IntN(4000)) * time.Millisecond)
				c.strike()
			}
			cancel()
			people.Wait()
			c.settle()
			t.Logf("seed %d: %v", seed, c.counts)
			if c.counts["orders frozen"] < 3 || c.counts["freezes"] < 10 {
				t.Errorf("too few orders to mean anything: %v", c.counts)
			}
		})
		if t.Failed() {
			t.Logf("seed %d", seed)
			return
		}
	}
}
