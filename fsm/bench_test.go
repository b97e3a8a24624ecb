package fsm

import (
	"fmt"
	"runtime"
	"testing"
)

// bigTable holds n locks, each with an owner, a process and a node's number.
func bigTable(b *testing.B, n int) *Machine {
	b.Helper()
	m := New()
	apply(m, NodeJoin{Name: "n1", Nonce: [16]byte{1}})
	for i := range n {
		m.Apply(benchEntry(b, uint64(i), i, Acquire{
			Owner: fmt.Sprintf("host%d.example.org_%d_ann", i%500, i), Locks: []string{fmt.Sprintf("/batch/job/%d", i)}, Block: true,
			Process: Process{Host: fmt.Sprintf("host%d.example.org", i%500), PID: int32(i/500 + 1), Start: 12345}, Autounlock: true,
		}))
	}
	return m
}

// benchEntry is one proposal of node 1 that has come through the log.
func benchEntry(b testing.TB, seq uint64, outstanding int, c Command) Entry {
	floor := seq - min(seq, uint64(min(outstanding, 64)))
	return recode(b, Entry{Now: 1, Proposals: []Proposal{{Ask: Ask{1, seq}, Floor: floor, Command: c}}})
}

// BenchmarkAcquireRelease is a pair on a lock of its own while others are held.
func BenchmarkAcquireRelease(b *testing.B) {
	for _, n := range []int{0, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("held=%d", n), func(b *testing.B) {
			m := bigTable(b, n)
			seq := uint64(n)
			auto := Process{Host: "host1.example.org", PID: 99999, Start: 12345}
			entries := make([]Entry, 2)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				entries[0] = Entry{Now: 1, Proposals: []Proposal{{Ask: Ask{1, seq}, Floor: seq - min(seq, 64), Command: Acquire{
					Owner: "ann", Locks: []string{benchNames[i%len(benchNames)]}, Block: true, Process: auto, Autounlock: true,
				}}}}
				entries[1] = Entry{Now: 1, Proposals: []Proposal{{Ask: Ask{1, seq + 1}, Floor: seq - min(seq, 64), Command: Release{
					Owner: "ann", Locks: []string{benchNames[i%len(benchNames)]},
				}}}}
				seq += 2
				for _, e := range entries {
					m.Apply(e)
				}
			}
		})
	}
}

var benchNames = func() (names [1000]string) {
	for i := range names {
		names[i] = fmt.Sprint("bench/", i)
	}
	return names
}()

// BenchmarkHandoff is a release that grants the next waiter, who then queues
// again, on one lock with many waiters.
func BenchmarkHandoff(b *testing.B) {
	for _, n := range []int{100, 100_000} {
		b.Run(fmt.Sprintf("waiters=%d", n), func(b *testing.B) {
			m := New()
			apply(m, NodeJoin{Name: "n1", Nonce: [16]byte{1}})
			owners := make([]string, n+1)
			seq := uint64(0)
			do := func(c Command) {
				seq++
				m.Apply(Entry{Now: 1, Proposals: []Proposal{{Ask: Ask{1, seq}, Floor: seq - min(seq, 64), Command: c}}})
			}
			locks := []string{"hot"}
			for i := range owners {
				owners[i] = fmt.Sprintf("host%d_%d_ann", i%500, i)
				do(Acquire{Owner: owners[i], Locks: locks, Block: true})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				owner := owners[i%len(owners)]
				do(Release{Owner: owner, Locks: locks})
				do(Acquire{Owner: owner, Locks: locks, Block: true})
			}
			if m.QueueLen("hot") != n {
				b.Fatalf("%d wait", m.QueueLen("hot"))
			}
		})
	}
}

// BenchmarkWithdraw leaves a queue of 100,000 from its middle and joins it again.
func BenchmarkWithdraw(b *testing.B) {
	m := New()
	locks := []string{"hot"}
	owners := make([]string, 100_001)
	for i := range owners {
		owners[i] = fmt.Sprintf("host%d_%d_ann", i%500, i)
		apply(m, Acquire{Owner: owners[i], Locks: locks, Block: true})
	}
	b.ResetTimer()
	for i := range b.N {
		owner := owners[1+(i*7919+50_000)%(len(owners)-1)]
		apply(m, Release{Owner: owner, Locks: locks}, Acquire{Owner: owner, Locks: locks, Block: true})
	}
}

// BenchmarkMemory says what a hold costs.
func BenchmarkMemory(b *testing.B) {
	heap := func() uint64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	const n = 100_000
	for b.Loop() {
		before := heap()
		m := bigTable(b, n)
		b.ReportMetric(float64(heap()-before)/n, "B/hold")
		runtime.KeepAlive(m)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	m := bigTable(b, 1_000_000)
	b.Run("stall", func(b *testing.B) {
		for b.Loop() {
			m.Snapshot()
		}
	})
	s, size := m.Snapshot(), 0
	count := func(chunk []byte) error {
		size += len(chunk)
		return nil
	}
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			size = 0
			if err := s.Encode(count); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(size)/1e6, "MB")
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			mustCheck(b, m)
		}
	})
	encoded := encode(b, m)
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			if _, err := Restore(encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
}
