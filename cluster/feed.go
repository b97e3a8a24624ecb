package cluster

import (
	"sync"

	"github.com/lockerd/lockerd/fsm"
)

// feed gives the table's events to whoever watches. A watcher that does not keep
// up is dropped: its channel closes.
type feed struct {
	mu       sync.Mutex
	watchers map[chan fsm.Event]struct{}
	closed   bool
}

func newFeed() *feed { return &feed{watchers: make(map[chan fsm.Event]struct{})} }

// Subscribe returns the events that this node's replica applies from now on. The
// channel is closed when the watcher falls buffer events behind, when the replica is
// replaced by a snapshot and so skips events, when the watcher cancels, or when the
// node stops.
func (n *Node) Subscribe(buffer int) (<-chan fsm.Event, func()) {
	ch := make(chan fsm.Event, buffer)
	f := n.events
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		close(ch)
		return ch, func() {}
	}
	f.watchers[ch] = struct{}{}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.drop(ch)
	}
}

func (f *feed) drop(ch chan fsm.Event) {
	if _, ok := f.watchers[ch]; ok {
		delete(f.watchers, ch)
		close(ch)
	}
}

func (f *feed) publish(events []fsm.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.watchers {
		for _, e := range events {
			select {
			case ch <- e:
				continue
			default:
			}
			f.drop(ch)
			break
		}
	}
}

// skip tells the watchers that they have missed events: their channels close.
func (f *feed) skip() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.watchers {
		f.drop(ch)
	}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for ch := range f.watchers {
		f.drop(ch)
	}
}
