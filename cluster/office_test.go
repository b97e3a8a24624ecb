package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockerd/lockerd/fsm"
)

// TestBatchesAreBounded fills the leader's queue with commands of all sizes. No
// batch may be more than the table's decoder reads, none may be needlessly small,
// and every command comes once, in order.
func TestBatchesAreBounded(t *testing.T) {
	names := func(n, size int) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("%0*d", size, i)
		}
		return list
	}
	fences := make([]fsm.Fence, fsm.MaxNamed)
	tickets := make([]fsm.Ticket, fsm.MaxNamed)
	for i := range fences {
		fences[i], tickets[i] = ^fsm.Fence(0), ^fsm.Ticket(0)
	}
	mixes := map[string][]fsm.Command{
		"small":   {fsm.Tick{}},
		"usual":   {fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, fsm.Release{Fence: 1}},
		"largest": {fsm.Acquire{Owner: strings.Repeat("o", fsm.MaxOwner), Locks: names(fsm.MaxLocks, fsm.MaxName), Process: fsm.Process{Host: strings.Repeat("h", fsm.MaxHost), PID: 1, Boot: strings.Repeat("b", fsm.MaxHost)}}},
		"deaths":  {fsm.ProcessGone{Process: fsm.Process{Host: strings.Repeat("h", fsm.MaxHost), PID: 1}, Fences: fences, Tickets: tickets}},
		"mixed": {
			fsm.Tick{},
			fsm.Release{Owner: "amy", Locks: names(fsm.MaxLocks, fsm.MaxName)},
			fsm.Renew{Owner: "amy", Fence: 3},
			fsm.Break{By: strings.Repeat("o", fsm.MaxOwner), Locks: names(9, 999)},
			fsm.NodeJoin{Name: "n", Nonce: [16]byte{1}},
		},
	}
	for name, mix := range mixes {
		t.Run(name, func(t *testing.T) {
			o := newOffice(nil, 1, 0)
			all := 10_000
			if name != "small" && name != "usual" {
				all = 300
			}
			for i := range all {
				ask := fsm.Ask{Node: ^fsm.Incarnation(0), Seq: uint64(i + 1)}
				o.propose(fsm.Proposal{Ask: ask, Floor: ^uint64(0), Command: mix[i%len(mix)]}, func(fsm.Result, error) {})
			}
			next := uint64(1)
			for {
				batch := o.take()
				if len(batch) == 0 {
					break
				}
				e := fsm.Entry{Now: ^fsm.Millis(0)}
				size := 0
				for _, p := range batch {
					if p.p.Ask.Seq != next {
						t.Fatalf("command %d came as number %d", p.p.Ask.Seq, next)
					}
					next++
					size += p.size
					e.Proposals = append(e.Proposals, p.p)
				}
				b := fsm.AppendEntry(nil, e)
				if _, err := fsm.DecodeEntry(b); err != nil {
					t.Fatalf("a batch of %d commands, %d bytes: %v", len(batch), len(b), err)
				}
				if len(batch) > 1 && len(b) > maxEntry {
					t.Errorf("%d commands make %d bytes", len(batch), len(b))
				}
				if next <= uint64(all) && len(batch) < maxBatch && size+o.queue[0].size <= maxEntry {
					t.Errorf("a batch of %d commands and %d bytes was not filled", len(batch), size)
				}
			}
			if next != uint64(all)+1 {
				t.Errorf("%d of %d commands taken", next-1, all)
			}
		})
	}
}

// TestAClosedOfficeTurnsAway closes an office over a queue.
func TestAClosedOfficeTurnsAway(t *testing.T) {
	o := newOffice(nil, 1, 0)
	answers := make(chan error, 2)
	done := func(_ fsm.Result, err error) { answers <- err }
	o.propose(fsm.Proposal{Command: fsm.Tick{}}, done)
	o.close()
	o.propose(fsm.Proposal{Command: fsm.Tick{}}, done)
	for range 2 {
		if err := <-answers; !errors.Is(err, errOutOfOffice) {
			t.Errorf("answer %v", err)
		}
	}
}
