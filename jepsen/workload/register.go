package workload

import (
	"context"
	"slices"
	"strconv"
	"sync"

	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// Register is what a lock protects: a set that is read as a whole and written back
// as a whole, so that two who do so at a time lose what one of them has added.
type Register struct {
	mu    sync.Mutex
	set   []int
	fence uint64
	last  int
}

// Read returns the set to whoever holds a fence. The fence counts from here on: if
// only writes brought it, a holder of the past could still write between the read
// and the write of the present one, and what it wrote would be lost.
func (r *Register) Read(fence uint64) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fence = max(fence, r.fence)
	return slices.Clone(r.set)
}

// Set is what is in it.
func (r *Register) Set() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.set)
}

// Write replaces the set. With guard it refuses a fence lower than one it has seen.
func (r *Register) Write(set []int, fence uint64, guard bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if guard && fence < r.fence {
		return false
	}
	r.set, r.fence = set, max(fence, r.fence)
	return true
}

// element is a number that nobody has added yet.
func (r *Register) element() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	return r.last
}

// add puts an element into the set under a lock.
func (c *Client) add(ctx context.Context, a gen.Action) error {
	h, err := c.acquire(c.options(names(a.Locks)))
	if h == nil {
		return err
	}
	r := &c.env.Register
	set := r.Read(h.Fence)
	_ = pause(ctx, a.Hold)
	c.write(set, h.Fence)
	c.release(h)
	return nil
}

// write writes back a set that was read, with a new element.
func (c *Client) write(set []int, fence uint64) {
	r := &c.env.Register
	v := r.element()
	note := history.Op{Process: c.process, Type: history.Invoke, F: history.Write, Fence: fence, Owner: c.user, Value: strconv.Itoa(v)}
	c.env.Rec.Add(note)
	note.Type = history.Fail
	if r.Write(append(set, v), fence, c.env.Guard) {
		note.Type = history.OK
	}
	c.env.Rec.Add(note)
}
