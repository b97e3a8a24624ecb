package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// pollGrace is how long a new leader waits for its members to come into touch:
	// what they watch is not to be asked for.
	pollGrace = 3 * time.Second

	// pollEach is the time between two questions for one process, if there are few;
	// pollGap that between any two. The latter is IPC::Locker's limit.
	pollEach = time.Second
	pollGap  = 10 * time.Millisecond

	// pollFresh is how old a question may be that an answer is taken for: pidstat
	// has no numbers to tell answers apart. What a process was granted later than that
	// is not meant by the answer: its number may be another's since.
	pollFresh = 5 * time.Second

	// pollSkip bounds the processes passed over in search of one to ask for, and
	// pollRest is the time between two searches that find none. In most farms each
	// host has a node, and this job nothing to do.
	pollSkip = 1024
	pollRest = 100 * time.Millisecond

	// pollScan is the shortest time between two looks at the whole table.
	pollScan = 30 * time.Second
)

// initialNamespace is the pid namespace of a host's own processes: its inode number
// is PROC_PID_INIT_INO, the same everywhere (include/linux/proc_ns.h).
const initialNamespace = "4026531836"

// polls is the leader's list of the processes that hold or wait with autounlock on
// hosts where no node of ours watches. They are asked for in turn, of the pidstatds
// there. What a node in touch watches is left out, so that the list is short in most
// farms; when nodes have gone, the table is looked through for what they watched. Only the answer that a process is dead counts; silence, as from a host that
// is down, frees nothing.
//
// pidstat knows process numbers alone: a number that is used again reads as alive.
// For the same reason nothing is asked for a process of a container, whose numbers
// are not those that the host's pidstatd sees, and nothing for one of this very
// boot: a node that watches its host's processes watches it, unless it is such a
// container's.
type polls struct {
	node   *Node
	names  *members
	remote Remote // nil until there is something to ask
	failed bool   // to open it; said in the log once

	mu      sync.Mutex
	filled  bool
	backlog []fsm.Event // until filled
	scanned time.Time
	lost    int // peers.lost, when scanned
	all     map[fsm.Process]*polled
	ring    []*polled // all, in the order in which they are asked for
	turn    int
	pids    map[int32][]*polled
	fences  map[fsm.Fence]*polled
	tickets map[fsm.Ticket]*polled
	hosts   map[string]*remoteHost
	wanted  []*remoteHost // to be looked up
	lookups int           // under way
}

// polled is a process that is asked for.
type polled struct {
	process fsm.Process
	host    *remoteHost
	place   int                     // in ring
	fences  map[fsm.Fence]time.Time // since when they are known
	tickets map[fsm.Ticket]time.Time
	asks    int
	asked   time.Time
	dead    map[netip.Addr]time.Time // where it is said to be dead, and when that was said last
}

// poll is the leader's job of asking for the processes that nobody watches.
func (n *Node) poll(ctx context.Context, o *office) {
	if n.cfg.PidstatPort < 0 {
		return
	}
	pause(ctx, pollGrace)
	p := newPolls(n)
	n.polls.Store(p)
	defer n.polls.Store(nil)
	var lookups sync.WaitGroup
	defer lookups.Wait()
	defer p.close()
	rest := time.Duration(0)
	for ctx.Err() == nil {
		p.scan()
		slot, end := context.WithTimeout(ctx, max(p.gap(), rest))
		rest = 0
		if !p.ask(ctx, lookups.Go) {
			rest = pollRest
		}
		p.listen(ctx, slot, o)
		end()
	}
}

func newPolls(n *Node) *polls {
	return &polls{
		node:    n,
		names:   &members{node: n},
		all:     make(map[fsm.Process]*polled),
		pids:    make(map[int32][]*polled),
		fences:  make(map[fsm.Fence]*polled),
		tickets: make(map[fsm.Ticket]*polled),
		hosts:   make(map[string]*remoteHost),
	}
}

func (p *polls) close() {
	if p.remote != nil {
		_ = p.remote.Close()
	}
}

// gap is the time until the next question.
func (p *polls) gap() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(pollEach/time.Duration(max(len(p.ring), 1)), pollGap)
}

// ask sends one question, for the next process that is due and can be asked for, and
// starts the lookups that have become due. It reports whether there may be more to
// ask for at present.
func (p *polls) ask(ctx context.Context, run func(func())) (more bool) {
	p.mu.Lock()
	all := len(p.ring)
	p.mu.Unlock()
	defer p.lookUp(ctx, run)
	for range min(all, pollSkip) {
		q, ok := p.next()
		if !ok || p.names.watch(q) {
			continue
		}
		at, ok := p.address(q)
		if !ok {
			continue
		}
		if err := p.remote.Ask(ctx, at, q.PID); err != nil {
			p.node.log.Debug("pidstatd not asked", "host", q.Host, "address", at, "error", err)
		}
		return true
	}
	return all > pollSkip
}

// next takes a turn. It is nobody's if the process was asked for just now.
func (p *polls) next() (fsm.Process, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ring) == 0 {
		return fsm.Process{}, false
	}
	p.turn %= len(p.ring)
	t := p.ring[p.turn]
	p.turn++
	return t.process, time.Since(t.asked) >= pollEach
}

// listen hears answers until the slot ends.
func (p *polls) listen(ctx, slot context.Context, o *office) {
	if p.remote == nil {
		<-slot.Done()
		return
	}
	for slot.Err() == nil {
		at, pid, err := p.remote.Receive(slot)
		if err != nil {
			// The socket reports that a host has turned a datagram away. Others go on.
			pause(slot, pollGap)
			continue
		}
		for _, q := range p.answered(at, pid) {
			if !p.names.watch(q) {
				p.report(ctx, o, q)
			}
		}
	}
}

// answered notes that a process is dead by the word of an address, and returns those
// of which that is certain now: of a name with several addresses, which may be
// several hosts, each has to say so.
func (p *polls) answered(at netip.Addr, pid int32) (dead []fsm.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.pids[pid] {
		if time.Since(t.asked) > pollFresh || !slices.Contains(t.host.addrs, at) {
			continue
		}
		t.dead[at] = time.Now()
		if !t.meant().IsZero() {
			dead = append(dead, t.process)
		}
	}
	return dead
}

// meant is the time before which a process must have got what is to end with it, by
// what all the addresses say; zero if one of them has not said that it is dead.
func (t *polled) meant() (at time.Time) {
	for _, a := range t.host.addrs {
		said, ok := t.dead[a]
		if !ok {
			return time.Time{}
		}
		if at.IsZero() || said.Before(at) {
			at = said
		}
	}
	if at.IsZero() {
		return at
	}
	return at.Add(-pollFresh)
}

// report has the table end what a dead process has.
func (p *polls) report(ctx context.Context, o *office, q fsm.Process) {
	for {
		gone, ok := p.charged(q)
		if !ok {
			return
		}
		if _, err := o.do(ctx, gone); err != nil {
			p.node.log.Debug("a death is not reported", "host", q.Host, "pid", q.PID, "error", err)
			return // it will be asked for again
		}
		p.mu.Lock()
		for _, f := range gone.Fences {
			p.dropFence(f)
		}
		for _, t := range gone.Tickets {
			p.dropTicket(t)
		}
		p.mu.Unlock()
	}
}

// charged is the report of a process's death.
func (p *polls) charged(q fsm.Process) (gone fsm.ProcessGone, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.all[q]
	if t == nil {
		return gone, false
	}
	gone.Process = q
	meant := t.meant()
	for f, since := range t.fences {
		if len(gone.Fences) < maxReport && since.Before(meant) {
			gone.Fences = append(gone.Fences, f)
		}
	}
	for k, since := range t.tickets {
		if len(gone.Tickets) < maxReport && since.Before(meant) {
			gone.Tickets = append(gone.Tickets, k)
		}
	}
	slices.Sort(gone.Fences)
	slices.Sort(gone.Tickets)
	return gone, len(gone.Fences)+len(gone.Tickets) > 0
}

// scan takes in the table, at the term's beginning and after nodes have gone.
func (p *polls) scan() {
	lost := p.node.peers.lost()
	p.mu.Lock()
	due := p.scanned.IsZero() || lost != p.lost && time.Since(p.scanned) >= pollScan
	if due {
		p.filled, p.scanned, p.lost = false, time.Now(), lost
	}
	p.mu.Unlock()
	if !due {
		return
	}
	var list []charge
	_, table := p.node.replica.snapshot()
	for _, h := range table.Holds() {
		if h.Autounlock && p.concerns(h.Process) {
			list = append(list, charge{Process: h.Process, Fence: h.Fence})
		}
	}
	for _, w := range table.Waits() {
		if w.Request.Autounlock && p.concerns(w.Request.Process) {
			list = append(list, charge{Process: w.Request.Process, Ticket: w.Ticket})
		}
	}
	p.fill(list)
}

// fill takes in what a look at the table has found. Events that came meanwhile are
// gone through afterwards: of each hold and wait the last one decides.
func (p *polls) fill(list []charge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range list {
		if c.Fence != 0 {
			p.addFence(c.Process, c.Fence)
		} else {
			p.addTicket(c.Process, c.Ticket)
		}
	}
	p.filled = true
	p.follow(p.backlog)
	p.backlog = nil
}

// note follows the table's events.
func (p *polls) note(events []fsm.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.filled {
		p.backlog = append(p.backlog, events...)
		return
	}
	p.follow(events)
}

func (p *polls) follow(events []fsm.Event) {
	for _, e := range events {
		switch e.Kind {
		case fsm.EventQueued:
			if e.Autounlock {
				p.addTicket(e.Process, e.Ticket)
			}
		case fsm.EventGranted:
			p.dropTicket(e.Ticket)
			if e.Autounlock {
				p.addFence(e.Process, e.Fence)
			}
		case fsm.EventRenewed:
			p.dropFence(e.Fence)
			p.dropTicket(e.Ticket)
			if e.Autounlock && e.Fence != 0 {
				p.addFence(e.Process, e.Fence)
			} else if e.Autounlock {
				p.addTicket(e.Process, e.Ticket)
			}
		case fsm.EventReleased, fsm.EventSuspended:
			p.dropFence(e.Fence)
		case fsm.EventWithdrawn:
			p.dropTicket(e.Ticket)
		case fsm.EventSuperseded:
			if e.Cause == fsm.CauseOwner {
				p.dropTicket(e.Ticket)
			}
		}
	}
}

// foreign reports whether a process may be one that a pidstatd elsewhere knows by
// its number.
func (p *polls) foreign(q fsm.Process) bool {
	own, namespace, _ := strings.Cut(q.Boot, "/")
	here, _, _ := strings.Cut(p.node.liveness.place.Boot, "/")
	return q.PID > 0 && q.Host != "" &&
		(namespace == "" || namespace == initialNamespace) &&
		(own == "" || own != here)
}

// concerns reports whether a process belongs in the list.
func (p *polls) concerns(q fsm.Process) bool {
	return p.foreign(q) && !p.node.liveness.watches().has(q) && !p.node.peers.watch(q)
}

// process finds or adds a process; nil if it is not to be asked for.
func (p *polls) process(q fsm.Process) *polled {
	if t := p.all[q]; t != nil || !p.concerns(q) {
		return t
	}
	h := p.host(q)
	if h == nil {
		return nil
	}
	t := &polled{
		process: q, host: h, place: len(p.ring),
		fences: make(map[fsm.Fence]time.Time), tickets: make(map[fsm.Ticket]time.Time),
		dead: make(map[netip.Addr]time.Time),
	}
	p.all[q] = t
	p.ring = append(p.ring, t)
	p.pids[q.PID] = append(p.pids[q.PID], t)
	return t
}

func (p *polls) addFence(q fsm.Process, f fsm.Fence) {
	if t := p.process(q); t != nil && p.fences[f] != t {
		p.dropFence(f)
		t.fences[f] = time.Now()
		p.fences[f] = t
	}
}

func (p *polls) addTicket(q fsm.Process, k fsm.Ticket) {
	if t := p.process(q); t != nil && p.tickets[k] != t {
		p.dropTicket(k)
		t.tickets[k] = time.Now()
		p.tickets[k] = t
	}
}

func (p *polls) dropFence(f fsm.Fence) {
	if t := p.fences[f]; t != nil {
		delete(p.fences, f)
		delete(t.fences, f)
		p.leave(t)
	}
}

func (p *polls) dropTicket(k fsm.Ticket) {
	if t := p.tickets[k]; t != nil {
		delete(p.tickets, k)
		delete(t.tickets, k)
		p.leave(t)
	}
}

// leave forgets a process that has nothing more to lose.
func (p *polls) leave(t *polled) {
	if len(t.fences)+len(t.tickets) > 0 {
		return
	}
	delete(p.all, t.process)
	last := p.ring[len(p.ring)-1]
	p.ring[t.place], last.place = last, t.place
	p.ring[len(p.ring)-1] = nil
	p.ring = p.ring[:len(p.ring)-1]
	pid := t.process.PID
	p.pids[pid] = slices.DeleteFunc(p.pids[pid], func(u *polled) bool { return u == t })
	if len(p.pids[pid]) == 0 {
		delete(p.pids, pid)
	}
	p.leaveHost(t)
}
