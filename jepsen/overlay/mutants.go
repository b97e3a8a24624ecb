package overlay

import (
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
)

// Mutant is a server with one deliberate fault, and how to bring it to light.
type Mutant struct {
	Name     string
	About    string
	Patches  []Patch
	Workload string
	Nemesis  []string
	Nodes    int
	Rate     float64    // of actions a second; 0 is the usual
	Clients  int        // likewise
	Rhythm   gen.Rhythm // likewise
}

// Snapshots makes snapshots, restores and installs of them frequent: every 16 KiB
// of log, with few entries left behind them. It is no fault.
var Snapshots = []Patch{
	{"cluster/config.go", "c.SnapshotBytes = 64 << 20", "c.SnapshotBytes = 16 << 10"},
	{"cluster/raftnode.go", "trailingLogs = 4096", "trailingLogs = 32"},
}

// Mutants are the deliberate faults. A checker that misses one is not to be believed.
var Mutants = []Mutant{
	{
		Name: "double-grant", About: "one grant in two hundred ignores that the lock is held",
		Patches: []Patch{{
			"fsm/lock.go", "	case held != mode || mode == Exclusive:\n		return false\n",
			"	case l.holders.head.claim.hold.Fence%200 == 7:\n		return true\n	case held != mode || mode == Exclusive:\n		return false\n",
		}},
		Workload: "mutex", Nodes: 1,
	},
	{
		Name: "no-quorum", About: "the leader takes an entry for committed that it alone has",
		Patches: []Patch{{
			"github.com/hashicorp/raft:commitment.go", "matched[(len(matched)-1)/2]", "matched[len(matched)-1]",
		}},
		Workload: "mutex", Nemesis: []string{"isolate"}, Nodes: 3,
	},
	{
		Name: "stale-read", About: "the leader answers reads without asking whether it still leads",
		Patches: []Patch{{
			"cluster/read.go", "if err := r.verify(); err != nil {", "if err := error(nil); err != nil {",
		}},
		// It shows in what a leader says that is not one any more, if it was asked after the
		// new one had moved a lock that was held when they were parted. So there are many
		// clients that ask seldom: one that wants a lock there learns nothing any more.
		Workload: "status", Nemesis: []string{"slowlead"}, Nodes: 3, Rate: 60, Clients: 60,
		Rhythm: gen.Rhythm{
			Shortest: 3 * time.Second, Longest: 4500 * time.Millisecond,
			ShortestPause: time.Second, LongestPause: 2 * time.Second,
		},
	},
	{
		Name: "follower-read", About: "a follower answers reads from its own table, however old",
		Patches: []Patch{{
			"cluster/read.go", "	if _, err := n.catchUp(ctx); err != nil {\n		return err\n	}\n	n.replica.view(f)",
			"	n.replica.view(f)",
		}},
		Workload: "status", Nemesis: []string{"partition"}, Nodes: 3,
	},
	{
		Name: "no-fsync", About: "the log is written, and never forced to the disk",
		Patches: []Patch{{
			"cluster/store.go", "		Path: path,\n", "		Path: path, NoSync: true,\n",
		}},
		Workload: "mutex", Nemesis: []string{"powerall"}, Nodes: 3,
	},
	{
		Name: "fence-lost", About: "a snapshot tells the highest fence that is held, in place of the last one given out",
		Patches: append([]Patch{
			{"fsm/snapshot.go", "uint64(s.now), uint64(s.fence),", "uint64(s.now), s.held(),"},
			{"fsm/zz_mutant.go", "", `package fsm

func (s *Snapshot) held() uint64 {
	most := Fence(0)
	for _, h := range s.holds.values() {
		most = max(most, h.Fence)
	}
	return uint64(most)
}
`},
		}, Snapshots...),
		Workload: "mutex", Nemesis: []string{"killall"}, Nodes: 3, Rate: 40,
	},
	{
		Name: "false-death", About: "a process is taken for dead 200 ms after its lock was granted",
		Patches: []Patch{{
			"cluster/liveness.go", "		l.wards[key] = w\n",
			"		l.wards[key] = w\n		time.AfterFunc(200*time.Millisecond, func() { l.died(key) })\n",
		}},
		Workload: "autounlock", Nodes: 3,
	},
	{
		Name: "early-limit", About: "a hold limit ends 150 ms too early",
		Patches:  []Patch{{"fsm/machine.go", "if c == nil || at > m.now {", "if c == nil || at > m.now+150 {"}},
		Workload: "timeout", Nodes: 3,
	},
	{
		Name: "last-come", About: "who comes last is served first",
		Patches: []Patch{{
			"fsm/lock.go", "	l.row(s.claim).push(s)\n",
			"	if r := l.row(s.claim); r == &l.queue && r.head != nil {\n		s.prev, s.next = nil, r.head\n		r.head.prev, r.head = s, s\n		r.n++\n	} else {\n		r.push(s)\n	}\n",
		}},
		Workload: "fifo", Nodes: 3,
	},
	{
		Name: "two-of-any", About: "who waits for any of several is granted two of them",
		Patches:  []Patch{{"fsm/grant.go", "return []string{names[i]}", "return append([]string{names[i]}, names[(i+1)%len(names)])"}},
		Workload: "anyof", Nodes: 3,
	},
	{
		Name: "no-memory", About: "a repeated request is carried out again",
		Patches:  []Patch{{"fsm/machine.go", "if r := s.answer(p.Ask.Seq); r != nil {", "if r := s.answer(p.Ask.Seq); r != nil && false {"}},
		Workload: "mutex", Nemesis: []string{"kill", "isolate", "pause"}, Nodes: 3,
	},
	{
		Name: "wall-clock", About: "hold limits go by the wall clock",
		Patches: []Patch{
			{"cluster/office.go", "return o.base + fsm.Millis(time.Since(o.from)/time.Millisecond)", "return o.base + fsm.Millis(time.Now().Round(0).Sub(o.from.Round(0))/time.Millisecond)"},
		},
		Workload: "timeout", Nemesis: []string{"clockjump"}, Nodes: 3,
	},
	{
		Name: "silence", About: "a process is taken for dead when its host has not answered for some seconds",
		Patches: []Patch{
			{
				"cluster/poll.go", "		if err := p.remote.Ask(ctx, at, q.PID); err != nil {",
				"		for _, d := range p.silent(at, q.PID, q) {\n			p.report(ctx, p.node.office.Load(), d)\n		}\n		if err := p.remote.Ask(ctx, at, q.PID); err != nil {",
			},
			{"cluster/zz_mutant.go", "", `package cluster

import (
	"net/netip"

	"github.com/lockerd/lockerd/fsm"
)

func (p *polls) silent(at netip.Addr, pid int32, q fsm.Process) []fsm.Process {
	p.mu.Lock()
	t := p.all[q]
	silent := t != nil && t.asks > 5
	p.mu.Unlock()
	if !silent {
		return nil
	}
	return p.answered(at, pid)
}
`},
		},
		Workload: "faraway", Nemesis: []string{"mute"}, Nodes: 3,
	},
}
