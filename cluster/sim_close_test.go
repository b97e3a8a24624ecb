package cluster

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport/pipenet"
)

// stallingLog is a log that can be made to keep its writers waiting.
type stallingLog struct {
	raft.LogStore
	mu      sync.Mutex
	stalled chan struct{} // nil while it is not
}

func (l *stallingLog) stall() (goOn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled = make(chan struct{})
	return sync.OnceFunc(func() { close(l.stalled) })
}

// StoreLogs implements raft.LogStore.
func (l *stallingLog) StoreLogs(logs []*raft.Log) error {
	l.mu.Lock()
	stalled := l.stalled
	l.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
	return l.LogStore.StoreLogs(logs)
}

// TestSimulatedCloseAmidQuestions has readers ask whether a node leads while it is
// closed. Raft answers none of those whom it has not answered when it shuts down, and
// may take a question even after that; Close would wait for them until its time is over.
func TestSimulatedCloseAmidQuestions(t *testing.T) {
	const many = 20 // Raft's choice is by chance
	tests := []struct {
		name string
		ask  func(n *Node, log *stallingLog, calls *sync.WaitGroup) (goOn func())
	}{
		{"before Raft shuts down", func(n *Node, log *stallingLog, calls *sync.WaitGroup) func() {
			goOn := log.stall()
			n.raft.Apply(fsm.AppendEntry(nil, fsm.Entry{Proposals: []fsm.Proposal{{Command: fsm.Tick{}}}}), 0)
			verify := n.office.Load().reads.verify
			for range many {
				calls.Go(func() { _ = verify() })
			}
			return goOn
		}},
		{"after that", func(n *Node, _ *stallingLog, calls *sync.WaitGroup) func() {
			down := make(chan struct{})
			for range many {
				r := &reads{
					committed: func() (uint64, error) { <-down; return 0, nil },
					verify:    n.office.Load().reads.verify, run: n.run,
				}
				calls.Go(func() { _, _ = r.index(context.Background()) })
			}
			return func() {
				for n.raft.State() != raft.Shutdown {
					time.Sleep(time.Millisecond)
				}
				close(down)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				stores := newSimStores("n1")
				log := &stallingLog{LogStore: stores.Log}
				stores.Log = log
				s := &sim{
					t: t, net: pipenet.New(), nodes: make(map[string]*Node), disks: map[string]*Stores{"n1": stores},
					peers: []Server{{ID: "n1", Addr: "n1:1"}}, configure: func(*Config) {},
				}
				s.start("n1")
				n := s.leader()
				var calls sync.WaitGroup
				goOn := tt.ask(n, log, &calls)
				synctest.Wait() // they have been put
				closed := make(chan error)
				go func() { closed <- n.Close(context.Background()) }()
				synctest.Wait() // it has got as far as it can
				goOn()
				if err := <-closed; err != nil {
					t.Fatal(err)
				}
				calls.Wait()
			})
		})
	}
}
