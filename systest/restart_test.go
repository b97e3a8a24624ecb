package systest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// comeBack is how long a waiter has to find another node, and keeps its place.
const comeBack = 10 * time.Second

// A power failure: all nodes die at the same time, under load, and come back.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	const queue, takers = 12, 6
	f := start(t, farm.Options{Servers: 3})

	// A hold, and waiters spread over the nodes.
	holder := hello(t, f.Nodes[0].Client())
	must(t, holder.send("user holder\nlocks one\nblock 1\nLOCK\n\n"))
	first, err := holder.status(granted)
	if err != nil || !first.locked || first.fence == 0 {
		t.Fatalf("%q, %v", first.lines, err)
	}
	for i := range queue {
		w := hello(t, f.Nodes[i%3].Client())
		must(t, w.send("%s", wish(i)))
		if owner, place, err := w.waiting(2, granted); err != nil || owner != "holder" || place != i+1 {
			t.Fatalf("waiter %d: behind %s, place %d, %v", i, owner, place, err)
		}
	}

	// Others take lock after lock until the nodes die, and note what they are told.
	var mu sync.Mutex
	var wg sync.WaitGroup
	acknowledged := map[string]uint64{} // fence by lock; the owner is the lock's name
	for i := range takers {
		w := hello(t, f.Nodes[i%3].Client())
		wg.Go(func() {
			for n := 0; ; n++ {
				name := fmt.Sprintf("t%d-%d", i, n)
				if w.send("user %s\nlocks %s\nblock 0\nLOCK\n\n", name, name) != nil {
					return
				}
				b, err := w.status(granted)
				if err != nil || !b.locked {
					return
				}
				mu.Lock()
				acknowledged[name] = b.fence
				mu.Unlock()
			}
		})
	}
	await(t, time.Minute, "locks to be taken", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(acknowledged) < 200 {
			return fmt.Errorf("%d so far", len(acknowledged))
		}
		return nil
	})
	var kills sync.WaitGroup
	for _, n := range f.Nodes {
		kills.Go(n.Kill)
	}
	kills.Wait()
	wg.Wait()
	for _, n := range f.Nodes {
		must(t, n.Start())
	}
	ready(t, f)
	back := time.Now()

	// The waiters come back, the last one first and each over another node.
	waiters := make([]*wire, queue)
	for i := queue - 1; i >= 0; i-- {
		w := hello(t, f.Nodes[(i+1)%3].Client())
		must(t, w.send("%s", wish(i)))
		// No place follows: it is said to those who are new in a queue.
		if owner, _, err := w.waiting(1, granted); err != nil || owner != "holder" {
			t.Errorf("waiter %d is back: behind %q, %v", i, owner, err)
		}
		waiters[i] = w
	}
	places := queueOf(t, f.Nodes[2].Client())
	if len(places) != queue {
		t.Errorf("%d wait, %q; want %d", len(places), places, queue)
	}
	for i, owner := range places {
		if want := fmt.Sprint("w", i); owner != want {
			t.Errorf("place %d is that of %s, want %s", i+1, owner, want)
		}
	}
	if took := time.Since(back); took > comeBack {
		t.Fatalf("the waiters took %v to come back: this says nothing about their places", took)
	}

	newest := first.fence
	status := hello(t, f.Nodes[1].Client())
	held := func(owner, lock string, fence uint64) {
		t.Helper()
		must(t, status.send("user %s\nlocks %s\nSTATUS\n\n", owner, lock))
		b, err := status.status(granted)
		must(t, err)
		if !b.locked || b.fence != fence {
			t.Errorf("the hold of %s with fence %d is lost: %q", owner, fence, b.lines)
		}
	}
	held("holder", "one", first.fence)
	for name, fence := range acknowledged {
		held(name, name, fence)
		newest = max(newest, fence)
	}

	// The queue moves on in its order, and with fences newer than all before.
	user, fence := "holder", first.fence
	for i, w := range waiters {
		must(t, status.send("user %s\nlocks one\nfence %d\nUNLOCK\n\nfence 0\n", user, fence))
		if b, err := status.status(granted); err != nil || b.fault != "" {
			t.Fatalf("unlock of %s: %q, %v", user, b.lines, err)
		}
		b, err := w.status(granted)
		if err != nil || !b.locked || b.owner != fmt.Sprint("w", i) {
			t.Fatalf("waiter %d: %q, %v", i, b.lines, err)
		}
		if b.fence <= newest {
			t.Errorf("waiter %d got fence %d, and %d was given out before", i, b.fence, newest)
		}
		user, fence, newest = b.owner, b.fence, b.fence
	}
}

// wish is the LOCK of waiter i, with a request id.
func wish(i int) string {
	id := [16]byte{15: byte(i + 1)}
	return fmt.Sprintf("user w%d\nlocks one\nrequest %s\nblock 1\nLOCK\n\n", i, hex.EncodeToString(id[:]))
}

// hello connects a client of proto 2.
func hello(t *testing.T, addr string) *wire {
	t.Helper()
	w := connect(t, addr)
	must(t, w.send("proto 2\n"))
	if _, err := w.lines(1, granted); err != nil {
		t.Fatal(err)
	}
	return w
}

// queueOf lists those who wait by their places.
func queueOf(t *testing.T, addr string) []string {
	t.Helper()
	w := hello(t, addr)
	must(t, w.send("HOLDS\n\n"))
	var owners []string
	for {
		line, err := w.lines(1, granted)
		must(t, err)
		if line[0] == "" {
			return owners
		}
		text, ok := strings.CutPrefix(line[0], "waiter ")
		if !ok {
			continue
		}
		var waiter struct {
			Owner string `json:"owner"`
			Place int    `json:"place"`
		}
		must(t, json.Unmarshal([]byte(text), &waiter))
		for len(owners) < waiter.Place {
			owners = append(owners, "")
		}
		owners[waiter.Place-1] = waiter.Owner
	}
}
