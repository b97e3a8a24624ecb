package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport/pipenet"
)

// orderSim is a simulated cluster whose nodes have fake executors.
type orderSim struct {
	*sim
	execs map[string]*fakeExecutor // of the nodes as they were started last
	all   []*fakeExecutor
	dead  map[string]chan struct{} // likewise: closed when it dies
}

func newOrderSim(t *testing.T, servers, agents int) *orderSim {
	return newOrderSimWith(t, servers, agents, func(*Config) {})
}

func newOrderSimWith(t *testing.T, servers, agents int, configure func(*Config)) *orderSim {
	s := &orderSim{
		sim:   &sim{t: t, net: pipenet.New(), nodes: make(map[string]*Node), disks: make(map[string]*Stores)},
		execs: make(map[string]*fakeExecutor), dead: make(map[string]chan struct{}),
	}
	s.configure = func(cfg *Config) {
		dead := make(chan struct{})
		s.dead[cfg.Name] = dead
		cfg.Dial = mortal(dead, cfg.Dial)
		x := newFakeExecutor(cfg.Name)
		s.execs[cfg.Name] = x
		s.all = append(s.all, x)
		cfg.Executor = x
		if s.disks[cfg.Name] == nil {
			_ = cfg.PeerListener.Close()
			cfg.Agent, cfg.PeerListener, cfg.Stores = true, nil, nil
		}
		configure(cfg)
	}
	s.grow(servers)
	for i := range agents {
		s.start(fmt.Sprintf("agent%d", i+1))
	}
	s.joined()
	return s
}

// joined waits until the nodes that run are in the table and in touch, and no others.
func (s *orderSim) joined() {
	s.t.Helper()
	s.until("all nodes to be in touch", func() bool {
		here := make(map[fsm.Incarnation]bool)
		for _, n := range s.nodes {
			here[n.ledger.incarnation()] = true
		}
		found := 0
		s.leader().replica.view(func(m *fsm.Machine) {
			for _, node := range m.Nodes() {
				switch {
				case here[node.Incarnation] && !node.Away:
					found++
				case !node.Away:
					found = -len(m.Nodes())
				}
			}
		})
		return found == len(s.nodes)
	})
	time.Sleep(2 * pingInterval) // every server knows every node's way
}

func (s *orderSim) until(what string, cond func() bool) {
	s.t.Helper()
	for range 12_000 {
		if cond() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("waiting for %s", what)
}

func freezeAll() OrderRequest {
	return OrderRequest{Action: "freeze", Spec: []byte(`{"machine":true}`), All: true}
}

// open opens an order by a node.
func (s *orderSim) open(n *Node, r OrderRequest) uint64 {
	s.t.Helper()
	id, err := n.OpenOrder(s.t.Context(), r, "root@test")
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// reach waits for an order to be in a state.
func (s *orderSim) reach(n *Node, id uint64, state fsm.OrderState) OrderInfo {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	o, err := n.FollowOrder(ctx, id, "")
	for err == nil && stateOf(o.State) < state {
		o, err = n.FollowOrder(ctx, id, o.State)
	}
	if err != nil || o.State != state.String() {
		s.t.Fatalf("order %d is not %v: %+v, %v", id, state, o, err)
	}
	return o
}

// closed waits for an order to be over for a reason, and everything to be thawed.
func (s *orderSim) closed(n *Node, id uint64, reason fsm.OrderReason, text string) OrderInfo {
	s.t.Helper()
	o := s.reach(n, id, fsm.OrderClosed)
	if o.Reason != reason.String() || !strings.Contains(o.ReasonText, text) {
		s.t.Errorf("order %d is closed for %q: %s; want %v with %q", id, o.Reason, o.ReasonText, reason, text)
	}
	for _, x := range s.all {
		if x.isFrozen() {
			s.t.Errorf("%s is frozen", x.name)
		}
	}
	return o
}

// mortal lets nobody dial who is dead: what he has had to say while he was closed is not
// to be heard.
func mortal(dead <-chan struct{}, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := dial(ctx, addr)
		select {
		case <-dead:
			if err == nil {
				_ = conn.Close()
			}
			return nil, syscall.ENETDOWN
		default:
			return conn, err
		}
	}
}

// kill ends a node as kill -9 does, and its guards with it.
func (s *orderSim) kill(n *Node) {
	s.t.Helper()
	close(s.dead[n.Name()])
	// Cut off first: to have one of its connections end before another one, and tell of
	// that by the other one, is not for the dead.
	s.net.Isolate(s.addr(n.Name()))
	s.net.Kill(s.addr(n.Name()))
	s.net.Heal()
	if err := n.Close(s.t.Context()); err != nil {
		s.t.Error(err)
	}
	delete(s.nodes, n.Name())
}

// follower is some server that does not lead.
func (s *orderSim) follower() *Node {
	leader := s.leader()
	for _, n := range s.nodes {
		if n != leader && !n.cfg.Agent {
			return n
		}
	}
	return nil
}

func (s *orderSim) frozen() (names []string) {
	for name, x := range s.execs {
		if x.isFrozen() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TestOrderFreezesAll freezes three servers and an agent, asked by each of them: all
// prepare before any freezes, and all thaw.
func TestOrderFreezesAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		for i, via := range []string{"n1", "n2", "n3", "agent1"} {
			n := s.nodes[via]
			id := s.open(n, freezeAll())
			o := s.reach(n, id, fsm.OrderFrozen)
			if len(o.Nodes) != 4 || o.By != "root@test" || o.TimeoutMS != 60_000 || o.SpreadMS > 100 {
				t.Errorf("%+v", o)
			}
			var ready, froze time.Time
			for name, x := range s.execs {
				f := x.freezes()[i]
				if f.prepared.After(ready) {
					ready = f.prepared
				}
				if froze.IsZero() || f.frozen.Before(froze) {
					froze = f.frozen
				}
				if f.frozen.IsZero() || !f.thawed.IsZero() || f.task.Timeout != time.Minute || string(f.task.Spec) != `{"machine":true}` {
					t.Errorf("%s: %+v", name, f)
				}
			}
			if froze.Before(ready) {
				t.Errorf("one froze %v before all were ready", ready.Sub(froze))
			}
			list, err := s.nodes["n2"].Thaw(t.Context(), ThawRequest{All: true}, "ann@test")
			if err != nil || len(list) != 1 || list[0].State != "closed" || list[0].ReasonText != "thawed by ann@test" {
				t.Errorf("%+v, %v", list, err)
			}
			s.closed(n, id, fsm.OrderThawed, "ann@test")
		}
		open, err := s.nodes["agent1"].Orders(t.Context(), false)
		closed, err2 := s.nodes["n1"].Orders(t.Context(), true)
		if len(open) != 0 || len(closed) != 4 || err != nil || err2 != nil || closed[0].ID != 1 {
			t.Errorf("%+v, %+v, %v, %v", open, closed, err, err2)
		}
	})
}

// TestOrderIsAllOrNothing has one node refuse, or have no executor, or fail to freeze.
func TestOrderIsAllOrNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newOrderSim(t, 3, 1)
		defer s.close()
		x, n := s.execs["agent1"], s.nodes["n1"]
		x.refuse = errors.New("no process\n4711")
		s.closed(n, s.open(n, freezeAll()), fsm.OrderFailed, "node agent1: no process 4711")
		for name, x := range s.execs {
			for _, f := range x.freezes() {
				if !f.frozen.IsZero() {
					t.Errorf("%s froze", name)
				}
			}
		}
		x.refuse, x.broken = nil, errors.New("process 12 cannot be stopped")
		s.closed(n, s.open(n, freezeAll()), fsm.OrderFailed, "node agent1: process 12 cannot be stopped")
		x.broken = nil
		s.nodes["n2"].cfg.Executor = nil
		s.closed(n, s.open(n, freezeAll()), fsm.OrderFailed, "node n2: executors are off on n2: start lockerd there with --executors")
		s.nodes["n2"].cfg.Executor = s.execs["n2"]

		var no Refusal
		for _, r := range []OrderRequest{
			{Action: "freeze", Nodes: []string{"n1", "n9"}},
			{Action: "freeze", Nodes: []string{"n1", "n1"}},
			{Action: "freeze"},
			{Nodes: []string{"n1"}},
			{Action: "freeze", Nodes: []string{"n1"}, Fence: 99},
			{Action: "freeze", Nodes: []string{"n1"}, Spec: []byte(strings.Repeat(" ", fsm.MaxOrderSpec+1))},
			{Action: "freeze", Nodes: []string{"n1"}, TimeoutMS: 1 << 60},
		} {
			if id, err := n.OpenOrder(t.Context(), r, "root@test"); !errors.As(err, &no) {
				t.Errorf("%+.200v: order %d, %v", r, id, err)
			}
		}
		if _, err := n.Thaw(t.Context(), ThawRequest{ID: 99}, "root@test"); !errors.As(err, &no) {
			t.Errorf("thaw of what is not there: %v", err)
		}
		if _, err := n.Thaw(t.Context(), ThawRequest{ID: 1, Action: "fsfreeze"}, "root@test"); !errors.As(err, &no) {
			t.Errorf("thaw of another kind: %v", err)
		}
		id := s.open(n, OrderRequest{Action: "freeze", Nodes: []string{"n3"}, TimeoutMS: -1})
		if o := s.reach(n, id, fsm.OrderFrozen); o.TimeoutMS != -1 || o.DeadlineMS != 0 || o.LeftMS != nil || len(s.frozen()) != 1 {
			t.Errorf("%+v; %v", o, s.frozen())
		}
		for _, r := range []ThawRequest{{Node: "n1"}, {All: true, Action: "fsfreeze"}} {
			if list, err := n.Thaw(t.Context(), r, "root@test"); err != nil || len(list) != 0 {
				t.Errorf("%+v, %v", list, err)
			}
		}
		s.execs["n3"].stubbed = 3 // it is tried again
		if list, err := n.Thaw(t.Context(), ThawRequest{Node: "n3", Action: "freeze"}, "root@test"); err != nil || len(list) != 1 {
			t.Errorf("%+v, %v", list, err)
		}
		s.closed(n, id, fsm.OrderThawed, "")
	})
}

// TestOrderEndsForACutNode cuts a node off, be it an agent, a follower or the leader,
// while all are frozen: it thaws within the grace by itself, and the others are told.
func TestOrderEndsForACutNode(t *testing.T) {
	for _, role := range []string{"agent", "follower", "leader"} {
		t.Run(role, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newOrderSim(t, 3, 1)
				defer s.close()
				cut := map[string]*Node{"agent": s.nodes["agent1"], "follower": s.follower(), "leader": s.leader()}[role]
				var other *Node
				for _, n := range s.nodes {
					if n != cut && !n.cfg.Agent {
						other = n
					}
				}
				id := s.open(other, OrderRequest{Action: "freeze", All: true, TimeoutMS: -1})
				s.reach(other, id, fsm.OrderFrozen)
				time.Sleep(4 * time.Second) // nothing ends by itself
				if got := s.frozen(); len(got) != 4 {
					t.Fatalf("frozen: %v", got)
				}
				from := time.Now()
				s.net.Isolate(s.addr(cut.Name()))
				s.until("the node to thaw", func() bool { return !s.execs[cut.Name()].isFrozen() })
				if took := time.Since(from); took > cut.cfg.OrderGrace+10*time.Millisecond {
					t.Errorf("thawed after %v", took)
				}
				s.until("all to thaw", func() bool { return len(s.frozen()) == 0 })
				if took := time.Since(from); took > peerSilence+3*time.Second {
					t.Errorf("all thawed after %v", took)
				}
				s.net.Heal()
				o := s.reach(other, id, fsm.OrderClosed)
				if o.Reason != "node away" && o.Reason != "quorum" {
					t.Errorf("%+v", o)
				}
				if role != "leader" && o.ReasonText != fmt.Sprintf("node %s is out of touch", cut.Name()) {
					t.Errorf("%+v", o)
				}
				for _, p := range o.Nodes {
					if p.Node == cut.Name() && p.Cause != "quorum" && p.Cause != "gone" {
						t.Errorf("%+v", p)
					}
				}
			})
		})
	}
}

// TestOrderSurvivesLeaders changes or kills the leader in every phase of an order that
// the leader's own host is no part of. All nodes of the order live on, so it does too.
func TestOrderSurvivesLeaders(t *testing.T) {
	for fault, phases := range map[string][]fsm.OrderState{
		"crash":    {fsm.OrderPreparing, fsm.OrderFreezing, fsm.OrderFrozen, fsm.OrderThawing},
		"transfer": {fsm.OrderFreezing},
	} {
		for _, phase := range phases {
			t.Run(fmt.Sprintf("%s while %v", fault, phase), func(t *testing.T) {
				for range attempts(t) {
					bubble(t, func(t *testing.T) { survivesLeader(t, fault, phase) })
					if t.Failed() {
						return
					}
				}
			})
		}
	}
}

// attempts is how often what luck has a part in is tried: LOCKERD_SIM_ATTEMPTS, or a few.
func attempts(t *testing.T) int {
	v := os.Getenv("LOCKERD_SIM_ATTEMPTS")
	if v == "" {
		return 3
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("LOCKERD_SIM_ATTEMPTS: %v", err)
	}
	return n
}

func survivesLeader(t *testing.T, fault string, phase fsm.OrderState) {
	t.Helper()
	s := newOrderSim(t, 3, 1)
	defer s.close()
	time.Sleep(2 * pingInterval) // each server has heard of everybody, and not its leader alone
	leader, n := s.leader(), s.follower()
	x := s.execs["agent1"]
	step := map[fsm.OrderState]string{fsm.OrderPreparing: "prepare", fsm.OrderFreezing: "freeze", fsm.OrderThawing: "thaw"}[phase]
	release := x.hold(step)
	id := s.open(n, OrderRequest{Action: "freeze", Nodes: []string{n.Name(), "agent1"}})
	if phase == fsm.OrderThawing {
		s.reach(n, id, fsm.OrderFrozen)
		if _, err := n.Submit(t.Context(), fsm.OrderEnd{Order: fsm.OrderID(id), By: "ann", Reason: fsm.OrderThawed}); err != nil {
			t.Fatal(err)
		}
	}
	s.reach(n, id, phase)
	if fault == "transfer" {
		if _, err := leader.Transfer(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	} else {
		s.kill(leader)
	}
	release()
	s.leader()
	time.Sleep(time.Second) // for the new leader to meet everybody
	o, err := n.FollowOrder(t.Context(), id, "")
	for err == nil && stateOf(o.State) < fsm.OrderFrozen {
		o, err = n.FollowOrder(t.Context(), id, o.State)
	}
	if err != nil {
		t.Fatal(err)
	}
	if phase < fsm.OrderThawing {
		if got := s.frozen(); o.State != "frozen" || len(got) != 2 {
			t.Fatalf("frozen: %v; %+v", got, o)
		}
		if _, err := n.Thaw(t.Context(), ThawRequest{ID: id}, "ann"); err != nil {
			t.Fatal(err)
		}
	}
	s.closed(n, id, fsm.OrderThawed, "ann")
}
