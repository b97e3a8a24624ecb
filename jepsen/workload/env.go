package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// Breaker ends whoever holds a lock, and says whose holds those were.
type Breaker func(ctx context.Context, node int, lock, by string) ([]string, error)

// Env is what the clients of a run share.
type Env struct {
	Rec     *history.Recorder
	Seed    uint64
	Hosts   []string // client ports of the nodes
	Clients int
	Locks   int
	Rate    float64 // actions a second, of all clients together
	Guard   bool    // the register refuses old fences
	Raw     bool    // clients speak the protocol themselves, and repeat nothing
	Break   Breaker

	// Far does something on the host where the clients are, if they are on one without
	// a node, and HostName is what they call theirs.
	Far      func(func() error) error
	HostName string

	Register Register

	Sites []*Site // where those freeze who do
	Data  string  // where each node has its volume

	mu        sync.Mutex
	abandoned map[string]bool
	processes int

	uses map[int]int // of locks, while Raw

	reusing sync.Mutex // of process numbers
}

// rawUses is how often a lock is used by clients that repeat nothing: each outcome that
// they do not know may double the work of the check. Then another takes its place.
const rawUses = 200

// names are those of locks for the next request.
func (e *Env) names(locks []int) []string {
	if !e.Raw {
		return names(locks)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.uses == nil {
		e.uses = map[int]int{}
	}
	var all []string
	for _, i := range locks {
		all = append(all, fmt.Sprintf("%s.%d", Lock(i), e.uses[i]/rawUses))
		e.uses[i]++
	}
	return all
}

// Abandon gives a user up whose operation has no known end.
func (e *Env) Abandon(user string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.abandoned == nil {
		e.abandoned = map[string]bool{}
	}
	e.abandoned[user] = true
}

// Abandoned says whether a user was given up.
func (e *Env) Abandoned(user string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.abandoned[user]
}

// AnyAbandoned says whether there is work for the janitor.
func (e *Env) AnyAbandoned() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.abandoned) > 0
}

// process is a number that no client has had.
func (e *Env) process() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.processes++
	return e.processes - 1
}

// Lock is the name of lock i.
func Lock(i int) string { return fmt.Sprintf("l%d", i) }

func names(locks []int) []string {
	var all []string
	for _, i := range locks {
		all = append(all, Lock(i))
	}
	return all
}

// Workload is a way to use locks.
type Workload struct {
	Name  string
	About string
	// Mix adapts what the actions are made of.
	Mix func(m *gen.Mix)
	// Act does one action. Its error ends the client, and the run with it.
	Act func(ctx context.Context, c *Client, a gen.Action) error
	// Far says that the clients are on a host that runs no node, but a pidstatd.
	Far bool
	// Loses says that holds may end without their owners' doing: by a limit, by
	// being broken, or with their processes.
	Loses bool
	// Freezes says that the nodes have executors, and volumes to freeze.
	Freezes bool
}

// Run lets all clients work until ctx ends, and then waits until each has come
// to the end of its action.
func (w Workload) Run(ctx context.Context, e *Env) error {
	mix := gen.Mix{Locks: e.Locks, Names: 1, Try: 0.25, Read: 0.1, Hold: 20 * time.Millisecond}
	mix.Pause = time.Duration(float64(e.Clients) / e.Rate * float64(time.Second))
	if w.Mix != nil {
		w.Mix(&mix)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if w.Freezes {
		end, err := e.probing()
		if err != nil {
			return err
		}
		defer end()
	}
	var all sync.WaitGroup
	for i := range e.Clients {
		c := &Client{env: e, number: i, rng: rand.New(rand.NewPCG(e.Seed, uint64(i)))}
		c.renew()
		actions := gen.NewStream(e.Seed, i, mix)
		all.Go(func() {
			for ctx.Err() == nil {
				a := actions.Next()
				if pause(ctx, a.Pause) != nil {
					return
				}
				if err := w.Act(ctx, c, a); err != nil {
					cancel(fmt.Errorf("client %d: %w", i, err))
				}
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); err != nil && err != ctx.Err() {
		return err
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
