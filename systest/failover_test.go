package systest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// An old client waits at a follower, and the leader dies. The client sees a
// delay and nothing else.
func TestAWaitOutlivesTheLeader(t *testing.T) {
	f := start(t, farm.Options{Servers: 3})
	lead := leader(t, f)
	followers := f.Followers(lead)
	holder := connect(t, followers[1].Client())
	must(t, holder.lock("holder", "one", granted))

	waiter := connect(t, followers[0].Client())
	must(t, waiter.send("user waiter\nlocks one\nblock 1\ntimeout 600\nLOCK\n\nEOF\n\n"))
	got, err := waiter.lines(1, granted)
	if err != nil || got[0] != "print_waiting holder" {
		t.Fatalf("%q, %v", got, err)
	}
	lead.Kill()
	must(t, holder.unlock("holder", "one", granted))

	got, err = waiter.lines(6, granted)
	want := "print_obtained|owner waiter|locked 1|lockname one||"
	if err != nil || strings.Join(got, "|") != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
	if rest, err := waiter.r.ReadString('\n'); rest != "" || err == nil {
		t.Errorf("after EOF: %q, %v; want the end of the connection", rest, err)
	}
	// The grant holds on the other node as well, and after the connection.
	text, err := ask(followers[1].Client(), "user other\nlocks one\nSTATUS", granted)
	if err != nil || !strings.HasPrefix(text, "owner waiter\nlocked 0\n") {
		t.Errorf("status: %q, %v", text, err)
	}
}

// The leader dies while a queue of a thousand old clients moves. Nobody overtakes
// anybody, and nobody is forgotten.
func TestAQueueKeepsItsOrderOverAFailover(t *testing.T) {
	const waiters = 1000
	f := start(t, farm.Options{Servers: 3})
	lead := leader(t, f)
	followers := f.Followers(lead)
	holder := connect(t, followers[0].Client())
	must(t, holder.lock("holder", "one", granted))

	var wg sync.WaitGroup
	defer wg.Wait()
	h := &holders{}
	failed := make(chan error, waiters)
	for i := range waiters {
		user := fmt.Sprint("w", i)
		w := connect(t, followers[i%2].Client())
		must(t, w.send("user %s\nlocks one\nblock 1\ntimeout 600\nLOCK\n\n", user))
		// The next one asks when this one is known to be queued.
		if _, _, err := w.waiting(1, granted); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer w.Close()
			if err := w.grant(user, time.Minute); err != nil {
				failed <- fmt.Errorf("%s: %w", user, err)
				return
			}
			h.enter(user, 0)
			h.leave()
			if err := w.unlock(user, "one", granted); err != nil {
				failed <- fmt.Errorf("%s: %w", user, err)
			}
		})
	}
	must(t, holder.unlock("holder", "one", granted))
	served := func(n int) func() error {
		return func() error {
			select {
			case err := <-failed:
				t.Fatal(err)
			default:
			}
			if got := h.count(); got < n {
				return fmt.Errorf("%d of %d have had the lock", got, n)
			}
			return nil
		}
	}
	await(t, 2*time.Minute, "the queue to move", served(waiters/4))
	lead.Kill()
	await(t, 2*time.Minute, "the queue to end", served(waiters))
	for i, user := range h.order {
		if want := fmt.Sprint("w", i); user != want {
			t.Fatalf("number %d was %s, want %s", i, user, want)
		}
	}
	h.check(t)
}

// An orderly stop of the leader is hardly noticed by clients of other nodes.
func TestTheLeaderStopsInGoodOrder(t *testing.T) {
	f := start(t, farm.Options{Servers: 3})
	// Nobody is elected within a second when a leader dies; but the machine may have
	// something else to do for as long.
	var worst time.Duration
	for range 3 {
		if worst = stopsInGoodOrder(t, f); worst <= time.Second {
			return
		}
	}
	t.Errorf("clients stood still for %v, and for more than a second before", worst)
}

// stopsInGoodOrder stops the leader and starts it again. It returns for how long a client
// of another node has waited at most.
func stopsInGoodOrder(t *testing.T, f *farm.Farm) (worst time.Duration) {
	t.Helper()
	lead := leader(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var workers []*worker
	for i, n := range f.Followers(lead) {
		workers = append(workers, startWorker(ctx, &wg, fmt.Sprint("worker", i), n.Client()))
	}
	for _, k := range workers {
		k.moves(t, 10, granted)
	}
	began := time.Now()
	code, err := lead.Terminate(t.Context())
	if err != nil || code != 0 {
		t.Errorf("SIGTERM to the leader: exit %d after %v, %v", code, time.Since(began), err)
	}
	if next := leader(t, f); next == lead {
		t.Error("the leader that has stopped still leads")
	}
	for _, k := range workers {
		k.moves(t, 10, granted)
		_, slowest, err := k.soFar()
		must(t, err)
		worst = max(worst, slowest)
	}
	must(t, lead.Start())
	ready(t, f)
	return worst
}

func TestAClusterOfOneStopsInGoodOrder(t *testing.T) {
	f := start(t, farm.Options{})
	n := f.Nodes[0]
	must(t, n.Ready(t.Context())) // 200 at /readyz
	w := connect(t, n.Client())
	must(t, w.lock("amy", "one", granted))
	if code, err := n.Terminate(t.Context()); err != nil || code != 0 {
		t.Fatalf("exit %d, %v", code, err)
	}
	if err := n.Ready(t.Context()); err == nil {
		t.Error("it has stopped and is ready")
	}
	must(t, n.Start())
	ready(t, f)
	text, err := ask(n.Client(), "user bob\nlocks one\nSTATUS", granted)
	if err != nil || !strings.HasPrefix(text, "owner amy\n") {
		t.Errorf("after the restart: %q, %v", text, err)
	}
}

// A process that is stopped and goes on must not think that it still leads, nor
// lose what was granted meanwhile.
func TestStoppedProcesses(t *testing.T) {
	for _, who := range []string{"follower", "leader"} {
		t.Run(who, func(t *testing.T) {
			f := start(t, farm.Options{Servers: 3})
			victim := leader(t, f)
			if who == "follower" {
				victim = f.Followers(victim)[0]
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			h := &holders{}
			var crowd []*contender
			for i := range 6 {
				crowd = append(crowd, startContender(ctx, &wg, h, fmt.Sprint("c", i), f.Nodes[i%3].Client()))
			}
			allMove(t, crowd, 3)
			must(t, victim.Signal(syscall.SIGSTOP))
			stopped := time.NewTimer(5 * time.Second)
			defer stopped.Stop()
			<-stopped.C
			must(t, victim.Signal(syscall.SIGCONT))
			allMove(t, crowd, 5)
			ready(t, f)
			h.check(t)
			if n := h.count(); n < 6*8 {
				t.Errorf("only %d grants", n)
			}
		})
	}
}

// contender takes and gives up the one lock that all contenders want, and keeps
// to its node whatever happens.
type contender struct {
	user, addr string
	mu         sync.Mutex
	grants     int
	err        error
}

func startContender(ctx context.Context, wg *sync.WaitGroup, h *holders, user, addr string) *contender {
	c := &contender{user: user, addr: addr}
	wg.Go(func() {
		err := c.run(ctx, h)
		c.mu.Lock()
		defer c.mu.Unlock()
		if ctx.Err() == nil {
			c.err = err
		}
	})
	return c
}

func (c *contender) run(ctx context.Context, h *holders) error {
	w, err := dial(c.addr)
	if err != nil {
		return err
	}
	defer w.Close()
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	if err := w.send("proto 2\n"); err != nil {
		return err
	}
	if _, err := w.lines(1, granted); err != nil {
		return err
	}
	for {
		if err := w.send("user %s\nlocks one\nblock 1\nLOCK\n\n", c.user); err != nil {
			return err
		}
		b, err := w.status(time.Minute)
		if err != nil || !b.locked || b.fence == 0 {
			return fmt.Errorf("lock: %q, %w", b.lines, err)
		}
		h.enter(c.user, b.fence)
		// Held for as long as it takes the cluster to say so.
		if err := w.send("STATUS\n\n"); err != nil {
			return err
		}
		if st, err := w.status(time.Minute); err != nil || !st.locked || st.fence != b.fence {
			return fmt.Errorf("status of a hold with fence %d: %q, %w", b.fence, st.lines, err)
		}
		h.leave()
		if err := w.send("locks one\nfence %d\nUNLOCK\n\nfence 0\n", b.fence); err != nil {
			return err
		}
		if b, err := w.status(time.Minute); err != nil || b.fault != "" {
			return fmt.Errorf("unlock: %q, %w", b.lines, err)
		}
		c.mu.Lock()
		c.grants++
		c.mu.Unlock()
	}
}

// allMove waits until each has had the lock n more times.
func allMove(t *testing.T, crowd []*contender, n int) {
	t.Helper()
	from := make([]int, len(crowd))
	look := func(c *contender) int {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			t.Fatalf("%s at %s: %v", c.user, c.addr, c.err)
		}
		return c.grants
	}
	for i, c := range crowd {
		from[i] = look(c)
	}
	await(t, time.Minute, "the lock to go round", func() error {
		for i, c := range crowd {
			if got := look(c) - from[i]; got < n {
				return fmt.Errorf("%s at %s has had it %d of %d times", c.user, c.addr, got, n)
			}
		}
		return nil
	})
}
