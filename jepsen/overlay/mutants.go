package overlay

import (
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
)

// Mutant is a server with one deliberate fault, and how to bring it to light.
type Mutant struct {
	Name     string
	About    string
	Check    string // that is there to catch it; that another fails as well does not count
	Patches  []Patch
	Workload string
	Nemesis  []string
	Nodes    int
	Rate     float64    // of actions a second; 0 is the usual
	Clients  int        // likewise
	Rhythm   gen.Rhythm // likewise
	NoGuard  bool       // the register takes old fences: fences protect it from the fault else
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
		Check: "holds exclude each other",
		Patches: []Patch{{
			"fsm/lock.go", "	case held != mode || mode == Exclusive:\n		return false\n",
			"	case l.holders.head.claim.hold.Fence%200 == 7:\n		return true\n	case held != mode || mode == Exclusive:\n		return false\n",
		}},
		Workload: "mutex", Nodes: 1,
	},
	{
		Name: "no-quorum", About: "the leader takes an entry for committed that it alone has",
		Check: "what was told was done",
		Patches: []Patch{{
			"github.com/hashicorp/raft:commitment.go", "matched[(len(matched)-1)/2]", "matched[len(matched)-1]",
		}},
		Workload: "mutex", Nemesis: []string{"isolate"}, Nodes: 3,
	},
	{
		Name: "stale-read", About: "the leader answers reads without asking whether it still leads",
		Check: "linearizable (porcupine)",
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
		Check: "linearizable (porcupine)",
		Patches: []Patch{{
			"cluster/read.go", "	if _, err := n.catchUp(ctx); err != nil {\n		return err\n	}\n	n.replica.view(f)",
			"	n.replica.view(f)",
		}},
		Workload: "status", Nemesis: []string{"partition"}, Nodes: 3,
	},
	{
		Name: "no-fsync", About: "the log is written, and never forced to the disk",
		Check: "fences are unique",
		Patches: []Patch{{
			"cluster/store.go", "		Path: path,\n", "		Path: path, NoSync: true,\n",
		}},
		Workload: "mutex", Nemesis: []string{"powerall"}, Nodes: 3,
	},
	{
		Name: "fence-lost", About: "a snapshot tells the highest fence that is held, in place of the last one given out",
		Check: "servers tell one story",
		Patches: []Patch{
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
			// It shows if the last hold is over when the snapshot is taken that a server
			// starts from: so there are many, and holds are short.
			{"cluster/config.go", "c.SnapshotBytes = 64 << 20", "c.SnapshotBytes = 2 << 10"},
			{"cluster/raftnode.go", "trailingLogs = 4096", "trailingLogs = 4"},
		},
		Workload: "status", Nemesis: []string{"killall"}, Nodes: 1,
	},
	{
		Name: "false-death", About: "a process is taken for dead 200 ms after its lock was granted",
		Check: "no hold is lost",
		Patches: []Patch{{
			"cluster/liveness.go", "		l.wards[key] = w\n",
			"		l.wards[key] = w\n		time.AfterFunc(200*time.Millisecond, func() { l.died(key) })\n",
		}},
		Workload: "autounlock", Nodes: 3,
	},
	{
		Name: "early-limit", About: "a hold limit ends 150 ms too early",
		Check:    "no hold is lost",
		Patches:  []Patch{{"fsm/machine.go", "if c == nil || at > m.now {", "if c == nil || at > m.now+150 {"}},
		Workload: "timeout", Nodes: 3,
	},
	{
		Name: "last-come", About: "who comes last is served first",
		Check: "first come, first served",
		Patches: []Patch{{
			"fsm/lock.go", "	l.row(s.claim).push(s)\n",
			"	if r := l.row(s.claim); r == &l.queue && r.head != nil {\n		s.prev, s.next = nil, r.head\n		r.head.prev, r.head = s, s\n		r.n++\n	} else {\n		r.push(s)\n	}\n",
		}},
		Workload: "fifo", Nodes: 3,
	},
	{
		Name: "two-of-any", About: "who waits for any of several is granted two of them",
		Check:    "linearizable (porcupine)",
		Patches:  []Patch{{"fsm/grant.go", "return []string{names[i]}", "return append([]string{names[i]}, names[(i+1)%len(names)])"}},
		Workload: "anyof", Nodes: 3,
	},
	{
		Name: "no-memory", About: "a repeated request is carried out again",
		Check:    "no hold is lost",
		Patches:  []Patch{{"fsm/machine.go", "if r := s.answer(p.Ask.Seq); r != nil {", "if r := s.answer(p.Ask.Seq); r != nil && false {"}},
		Workload: "mutex", Nemesis: []string{"kill", "isolate", "pause"}, Nodes: 3,
	},
	{
		Name: "wall-clock", About: "hold limits go by the wall clock",
		Check: "no hold is lost",
		Patches: []Patch{
			{"cluster/office.go", "return o.base + fsm.Millis(time.Since(o.from)/time.Millisecond)", "return o.base + fsm.Millis(time.Now().Round(0).Sub(o.from.Round(0))/time.Millisecond)"},
		},
		// It shows when the leader's clock is set while somebody has a hold, and in a run
		// hardly more than once: then that clock is put back, and no limit ends any more.
		Workload: "timeout", Nemesis: []string{"clockjump"}, Nodes: 3,
		Rhythm: gen.Rhythm{
			Shortest: 300 * time.Millisecond, Longest: time.Second,
			ShortestPause: time.Second, LongestPause: 2 * time.Second,
		},
	},
	{
		Name: "silence", About: "a process is taken for dead when its host has not answered for some seconds",
		Check: "no hold is lost",
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
	{
		Name: "no-votes", About: "no server votes after the third term",
		Check: "it recovers",
		Patches: []Patch{{
			"github.com/hashicorp/raft:raft.go", "	// Check if we have voted yet\n	lastVoteTerm, err := r.stable.GetUint64(keyLastVoteTerm)\n",
			"	if req.Term > 3 {\n		return\n	}\n	lastVoteTerm, err := r.stable.GetUint64(keyLastVoteTerm)\n",
		}},
		// Each time all are killed there is an election more, if there is the time for it.
		Workload: "mutex", Nemesis: []string{"killall"}, Nodes: 3,
		Rhythm: gen.Rhythm{
			Shortest: 300 * time.Millisecond, Longest: time.Second,
			ShortestPause: 3 * time.Second, LongestPause: 3500 * time.Millisecond,
		},
	},
	{
		Name: "moody", About: "one request in fifty is refused, for no reason",
		Check: "nobody is refused",
		Patches: []Patch{{
			"fsm/acquire.go", "	if reason := m.slotsConflict(a, me); reason != \"\" {",
			"	if m.now%50 == 7 {\n		return refused(\"not now\")\n	}\n	if reason := m.slotsConflict(a, me); reason != \"\" {",
		}},
		Workload: "mutex", Nodes: 3,
	},
	{
		Name: "passed-over", About: "every twentieth place in a queue is passed over for ever",
		Check: "nobody waits in vain",
		Patches: []Patch{{
			"fsm/acquire.go", "	c := m.addWait(w)\n",
			"	c := m.addWait(w)\n	if m.ticket%20 == 7 {\n		c.stepAside()\n	}\n",
		}},
		Workload: "fifo", Nodes: 3,
	},
	{
		Name: "no-withdrawal", About: "who gives up is told that this was done, and keeps the place",
		Check: "nothing is left behind",
		Patches: []Patch{{
			"fsm/release.go", "func (m *Machine) withdraw(c Withdraw) Result {\n",
			"func (m *Machine) withdraw(c Withdraw) Result {\n	if m.ticket%10 == 7 {\n		return Result{}\n	}\n",
		}},
		Workload: "giveup", Nodes: 3,
	},
	{
		Name: "leak", About: "each LOCK leaves a goroutine behind",
		Check: "nothing piles up",
		Patches: []Patch{{
			"cluster/session_lock.go", "func (s *session) lock(q transport.Request) bool {\n",
			"func (s *session) lock(q transport.Request) bool {\n	go func() { <-make(chan bool) }()\n",
		}},
		Workload: "mutex", Nodes: 3,
	},
	{
		Name: "late-limit", About: "hold limits and leases end eight seconds too late",
		Check:    "nothing outlasts its end",
		Patches:  []Patch{{"fsm/machine.go", "if c == nil || at > m.now {", "if c == nil || at+8000 > m.now {"}},
		Workload: "timeout", Nodes: 3,
	},
	{
		Name: "late-death", About: "the death of a process is reported ten seconds too late",
		Check: "nothing outlasts its end",
		Patches: []Patch{{
			"cluster/liveness.go", "func (l *liveness) died(key pidprobe.Process) {\n",
			"func (l *liveness) died(key pidprobe.Process) {\n	time.AfterFunc(10*time.Second, func() { l.diedLate(key) })\n}\n\nfunc (l *liveness) diedLate(key pidprobe.Process) {\n",
		}},
		Workload: "autounlock", Nodes: 3,
	},
	{
		Name: "panic", About: "one LOCK in five hundred ends the server",
		Check: "no server breaks down",
		Patches: []Patch{
			{
				"cluster/session_lock.go", "func (s *session) lock(q transport.Request) bool {\n",
				"func (s *session) lock(q transport.Request) bool {\n	mutate()\n",
			},
			{"cluster/zz_mutant.go", "", `package cluster

import "math/rand/v2"

func mutate() {
	if rand.IntN(500) == 0 {
		panic("a deliberate one")
	}
}
`},
		},
		Workload: "mutex", Nemesis: []string{"transfer"}, Nodes: 3,
	},
	{
		Name: "drift", About: "one ticket in fifty is numbered by what the server's clock shows",
		Check: "replicas agree",
		Patches: []Patch{
			{"fsm/acquire.go", "	m.ticket++\n	w := &Wait", "	m.ticket += drift()\n	w := &Wait"},
			{"fsm/zz_mutant.go", "", `package fsm

import "time"

func drift() Ticket {
	if time.Now().UnixMicro()%50 == 7 {
		return 2
	}
	return 1
}
`},
		},
		Workload: "mutex", Nodes: 3,
	},
	{
		Name: "fence-again", About: "one fence in fifty is given out again when its hold has ended",
		Check: "what was released is over",
		Patches: []Patch{{
			"fsm/grant.go", "	m.fence++\n",
			"	if m.fence == 0 || m.now%50 != 7 || m.holds.byKey[uint64(m.fence)] != nil {\n		m.fence++\n	}\n",
		}},
		Workload: "mutex", Nodes: 3,
	},
	{
		Name: "fence-swap", About: "of two fences the higher is given out first",
		Check:    "fences grow",
		Patches:  []Patch{{"fsm/grant.go", "Fence:      m.fence,", "Fence:      (m.fence + 1) ^ 1,"}},
		Workload: "mutex", Nodes: 3,
	},
	{
		Name: "lost-update", About: "one grant in ten ignores that the lock is held, and what it protects takes any fence",
		Check: "no element is lost",
		Patches: []Patch{{
			"fsm/lock.go", "	case held != mode || mode == Exclusive:\n		return false\n",
			"	case l.holders.head.claim.hold.Fence%10 == 7:\n		return true\n	case held != mode || mode == Exclusive:\n		return false\n",
		}},
		Workload: "set", Nodes: 1, NoGuard: true,
	},
	{
		Name: "no-thaw", About: "a node that is asked to thaw says that it has",
		Check:    "nothing stays frozen",
		Patches:  []Patch{{"freezer/prepared.go", "	err := p.guard.thaw(patience)\n", "	return nil\n	err := error(nil)\n"}},
		Workload: "freeze", Nodes: 3,
	},
	{
		Name: "short-freeze", About: "a guard counts three times too fast",
		Check:    "nothing thaws early",
		Patches:  []Patch{{"freezer/guard.go", "g.until = g.heard + o.timeout()\n", "g.until = g.heard + o.timeout()/3\n"}},
		Workload: "freeze", Nodes: 3,
	},
	{
		Name: "wide-freeze", About: "a node freezes the file system of another one, too",
		Check: "nothing else is frozen",
		Patches: []Patch{{
			"freezer/executor.go", "			o.Targets = append(o.Targets, FileSystem(m))\n",
			"			o.Targets = append(o.Targets, FileSystem(m), FileSystem(filepath.Join(filepath.Dir(m), \"n1v\")))\n",
		}},
		Workload: "freeze", Nodes: 3,
	},
}
