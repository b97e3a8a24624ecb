package cluster

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockerd/lockerd/fsm"
)

// BenchmarkPairs is a lock and its release, from the nodes' own interface: what
// the log, the disk and forwarding cost, without clients and their sockets.
func BenchmarkPairs(b *testing.B) {
	for _, servers := range []int{1, 3} {
		f := newFarm(b, servers)
		f.leader()
		for _, clients := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("servers=%d/clients=%d", servers, clients), func(b *testing.B) {
				f.pairs(b, clients)
			})
		}
	}
}

func (f *farm) pairs(b *testing.B, clients int) {
	ctx := context.Background()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range clients {
		n := f.nodes[i%len(f.nodes)]
		owner := fmt.Sprintf("owner%d", i)
		acquire := fsm.Acquire{Owner: owner, Locks: []string{"lock-of-" + owner}, Block: true}
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				c, res, err := n.Acquire(ctx, acquire, func(fsm.Event) {})
				if err != nil || res.Code != fsm.Granted {
					b.Errorf("%+v, %v", res, err)
					return
				}
				c.Forget()
				if res, err = n.Submit(ctx, fsm.Release{Owner: owner, Fence: res.Fence}); err != nil || res.Code != fsm.Done {
					b.Errorf("%+v, %v", res, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}
