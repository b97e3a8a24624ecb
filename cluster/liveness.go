package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
)

// Processes waits for processes of this host to end; pidprobe.Watcher does.
// Its methods are quick. A death is reported once, from any goroutine.
type Processes interface {
	// Identify completes a process that is known by its number alone with the start
	// time of the one that has that number now, or returns it as it is, with
	// pidprobe.ErrDead if there is none and another error if that can't be said.
	Identify(p pidprobe.Process) (pidprobe.Process, error)
	Watch(p pidprobe.Process) error
	Unwatch(p pidprobe.Process)
	Close() error
}

const (
	// reportAgain is how long a report of a death that found no leader rests.
	reportAgain = 100 * time.Millisecond

	// maxReport bounds the fences and the tickets of one report.
	maxReport = 1024
)

// place says whose processes are this node's to watch: those of its kernel's boot
// and pid namespace, by which clients name theirs, and those of old clients, who
// say no more than the host's name. Two hosts of one name must never be taken for
// each other, so the names must be equal to the letter. Processes of past boots are
// its too: whoever watches for them learns at once that they are dead.
type place struct {
	Hosts []string `json:"hosts"`
	Boot  string   `json:"boot"`           // boot id, slash, pid namespace
	Past  []string `json:"past,omitempty"` // boot ids of the same machine that are over
}

// thisPlace is where this program runs.
func thisPlace(hosts ...string) place {
	slices.Sort(hosts)
	hosts = slices.DeleteFunc(slices.Compact(hosts), func(h string) bool { return h == "" })
	return place{Hosts: hosts, Boot: pidprobe.Here()}
}

// has reports whether a process is of this place. One that names the boot but no
// namespace is believed to be of the host's own.
func (p place) has(q fsm.Process) bool {
	if q.PID < 1 {
		return false
	}
	if q.Boot == "" {
		return slices.Contains(p.Hosts, q.Host)
	}
	own, _, _ := strings.Cut(p.Boot, "/")
	return q.Boot == p.Boot || q.Boot == own || p.outlived(q)
}

// outlived reports whether a process is of a boot that is over.
func (p place) outlived(q fsm.Process) bool {
	boot, _, _ := strings.Cut(q.Boot, "/")
	return boot != "" && slices.Contains(p.Past, boot)
}

// keys are what an agent's processes are found by; see placeKey.
func (p place) keys() []string {
	keys := slices.Clone(p.Hosts)
	if own, _, _ := strings.Cut(p.Boot, "/"); own != "" {
		keys = append(keys, "/"+own)
	}
	for _, boot := range p.Past {
		keys = append(keys, "/"+boot)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// placeKey is the boot of a process, after a slash, or else its host's name.
func placeKey(p fsm.Process) string {
	if p.Boot == "" {
		return p.Host
	}
	own, _, _ := strings.Cut(p.Boot, "/")
	return "/" + own
}

// ward is a process that holds or waits on condition that it lives.
type ward struct {
	process   fsm.Process      // as a report names it
	key       pidprobe.Process // as it is watched
	fences    map[fsm.Fence]struct{}
	tickets   map[fsm.Ticket]struct{}
	dead      bool
	reporting bool
	reported  map[fsm.Fence]struct{} // to be told by gossip too: no other node of this host has an anchor
}

// liveness is what makes a lock last as long as its process. It learns from the
// table which processes of this host hold or wait with autounlock, waits for them
// to end, and reports each end to the leader, until the cluster has answered.
//
// A report names what it means, fence by fence, so that a late one can't end
// anything newer. What is granted to a process after its death, because it was
// next in a queue, is reported in turn. What is anchored (see anchor) is not
// reported for as long as it is.
//
// Old clients name a process by its number alone. Who that is, is looked up when the
// node first hears of each hold and each wait: those of two processes that have had
// the number one after the other are two wards, so that the end of the first takes
// nothing from the second. What a process had that was dead before the node heard of
// it is taken for that of the one which has the number then, if there is one: it
// lasts too long, since it must not end too early. So it is after a restart.
type liveness struct {
	node  *Node
	place place
	procs Processes

	mu      sync.Mutex
	wards   map[pidprobe.Process]*ward // watched, or dead when they were looked up
	dead    map[*ward]struct{}         // all that are
	fences  map[fsm.Fence]*ward
	tickets map[fsm.Ticket]*ward
	unsure  int                                // wards that could not be identified, so far
	anchors map[fsm.Fence]map[*anchor]struct{} // not empty ones
	cut     []*anchor                          // to be told by unlock that their holds are over
}

func (n *Node) openLiveness() error {
	l := &liveness{
		node:    n,
		place:   thisPlace(n.cfg.Host, n.host),
		wards:   make(map[pidprobe.Process]*ward),
		dead:    make(map[*ward]struct{}),
		fences:  make(map[fsm.Fence]*ward),
		tickets: make(map[fsm.Ticket]*ward),
		anchors: make(map[fsm.Fence]map[*anchor]struct{}),
	}
	n.liveness = l
	if n.cfg.Processes == nil {
		return nil
	}
	past, err := n.pastBoots()
	if err != nil {
		return err
	}
	l.place.Past = past
	warn := func(err error) { n.log.Warn("processes are watched less well than they should be", "error", err) }
	procs, err := n.cfg.Processes(l.died, warn)
	if err != nil {
		return fmt.Errorf("watch processes: %w", err)
	}
	l.procs = procs
	return nil
}

// watches is whose processes this node waits for: nobody's, if it has no watcher.
func (l *liveness) watches() place {
	if l.procs == nil {
		return place{}
	}
	return l.place
}

// note follows the table's events.
func (l *liveness) note(events []fsm.Event) {
	if l.procs == nil {
		return
	}
	l.mu.Lock()
	defer l.unlock()
	for _, e := range events {
		mine := e.Autounlock && l.place.has(e.Process)
		switch e.Kind {
		case fsm.EventQueued:
			if mine {
				l.addTicket(e.Process, e.Ticket)
			}
		case fsm.EventGranted:
			if w := l.tickets[e.Ticket]; mine && w != nil && w.is(e.Process) && l.fences[e.Fence] == nil {
				// Who has waited has the grant. Its number may be another's by now.
				l.giveFence(w, e.Fence)
			} else if mine {
				l.addFence(e.Process, e.Fence)
			}
			l.dropTicket(e.Ticket)
		case fsm.EventRenewed:
			l.dropFence(e.Fence)
			l.dropTicket(e.Ticket)
			if mine && e.Fence != 0 {
				l.addFence(e.Process, e.Fence)
			} else if mine {
				l.addTicket(e.Process, e.Ticket)
			}
		case fsm.EventReleased, fsm.EventSuspended:
			l.overFence(e.Fence)
		case fsm.EventWithdrawn:
			l.dropTicket(e.Ticket)
		case fsm.EventSuperseded:
			if e.Cause == fsm.CauseOwner {
				l.dropTicket(e.Ticket)
			}
		}
	}
}

// charge is a hold or a wait that ends with a process.
type charge struct {
	Process fsm.Process
	Fence   fsm.Fence
	Ticket  fsm.Ticket
}

// charges finds what ends with a process of a place.
func charges(p place, holds []*fsm.Hold, waits []*fsm.Wait) []charge {
	var list []charge
	for _, h := range holds {
		if h.Autounlock && p.has(h.Process) {
			list = append(list, charge{Process: h.Process, Fence: h.Fence})
		}
	}
	for _, w := range waits {
		if w.Request.Autounlock && p.has(w.Request.Process) {
			list = append(list, charge{Process: w.Request.Process, Ticket: w.Ticket})
		}
	}
	return list
}

// known lists what is watched for, to be compared with a table that is newer.
func (l *liveness) known() (fences []fsm.Fence, tickets []fsm.Ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.fences {
		fences = append(fences, f)
	}
	for f := range l.anchors {
		if _, ok := l.fences[f]; !ok {
			fences = append(fences, f)
		}
	}
	for t := range l.tickets {
		tickets = append(tickets, t)
	}
	return fences, tickets
}

// adopt brings what is watched into line with a table: list is what it holds, the
// others what was known before it was asked, and may be over.
func (l *liveness) adopt(list []charge, fences []fsm.Fence, tickets []fsm.Ticket) {
	l.mu.Lock()
	defer l.unlock()
	held := make(map[fsm.Fence]bool, len(list))
	queued := make(map[fsm.Ticket]bool, len(list))
	for _, c := range list {
		if c.Fence != 0 {
			held[c.Fence] = true
			l.addFence(c.Process, c.Fence)
		} else {
			queued[c.Ticket] = true
			l.addTicket(c.Process, c.Ticket)
		}
	}
	for _, f := range fences {
		if !held[f] {
			l.overFence(f)
		}
	}
	for _, t := range tickets {
		if !queued[t] {
			l.dropTicket(t)
		}
	}
}

func (l *liveness) addFence(p fsm.Process, f fsm.Fence) {
	if w := l.fences[f]; w != nil {
		if w.is(p) {
			return
		}
		l.dropFence(f)
	}
	l.giveFence(l.ward(p), f)
}

func (l *liveness) giveFence(w *ward, f fsm.Fence) {
	l.fences[f] = w
	w.fences[f] = struct{}{}
	l.report(w)
}

func (l *liveness) addTicket(p fsm.Process, t fsm.Ticket) {
	if w := l.tickets[t]; w != nil {
		if w.is(p) {
			return
		}
		l.dropTicket(t)
	}
	w := l.ward(p)
	l.tickets[t] = w
	w.tickets[t] = struct{}{}
	l.report(w)
}

// probed is a process as pidprobe knows it.
func probed(p fsm.Process) pidprobe.Process {
	boot, _, _ := strings.Cut(p.Boot, "/")
	return pidprobe.Process{Host: p.Host, PID: p.PID, Start: p.Start, Boot: boot}
}

// is reports whether p may be the ward's process, by what both say of it.
func (w *ward) is(p fsm.Process) bool {
	own, _, _ := strings.Cut(p.Boot, "/")
	return p.Host == w.process.Host && p.PID == w.key.PID && own == w.key.Boot && (p.Start == 0 || p.Start == w.key.Start)
}

// ward finds or adds the ward of a process, as it is now.
func (l *liveness) ward(p fsm.Process) *ward {
	key, err := l.procs.Identify(probed(p))
	dead := errors.Is(err, pidprobe.ErrDead)
	if err != nil && !dead {
		// There is no telling it from the next one of its number, but by when it is
		// watched from: so each of its holds and waits has a watch of its own.
		l.unsure++
		key.Host = fmt.Sprintf("%s (%d)", key.Host, l.unsure)
	}
	w := l.wards[key]
	if w == nil {
		w = &ward{process: p, key: key, fences: make(map[fsm.Fence]struct{}), tickets: make(map[fsm.Ticket]struct{})}
		w.process.Start = key.Start
		l.wards[key] = w
		if dead {
			l.bury(w)
		} else if err := l.procs.Watch(key); err != nil {
			l.node.log.Warn("process not watched", "process", key, "error", err)
		}
	}
	if w.process.Boot != p.Boot {
		w.process.Boot = "" // named with its pid namespace and without: the report is to match both
	}
	return w
}

func (l *liveness) bury(w *ward) {
	w.dead = true
	l.dead[w] = struct{}{}
}

func (l *liveness) dropFence(f fsm.Fence) {
	if w := l.fences[f]; w != nil {
		delete(l.fences, f)
		delete(w.fences, f)
		delete(w.reported, f)
		l.leave(w)
	}
}

func (l *liveness) dropTicket(t fsm.Ticket) {
	if w := l.tickets[t]; w != nil {
		delete(l.tickets, t)
		delete(w.tickets, t)
		l.leave(w)
	}
}

// leave ends the watch of a process that has nothing more to lose.
func (l *liveness) leave(w *ward) {
	if len(w.fences)+len(w.tickets) > 0 {
		return
	}
	if l.wards[w.key] == w {
		delete(l.wards, w.key)
		if !w.dead {
			l.procs.Unwatch(w.key)
		}
	}
	delete(l.dead, w)
}

// died is told of a death by the watcher. The ward is closed with that: what comes
// later under the same number is looked up.
func (l *liveness) died(key pidprobe.Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.wards[key]; w != nil && !w.dead {
		delete(l.wards, key)
		l.bury(w)
		l.report(w)
	}
}

// report sees to it that the cluster learns of a death. One report at a time is
// under way for each process; what it loses meanwhile is in the next.
func (l *liveness) report(w *ward) {
	if !w.dead || w.reporting {
		return
	}
	w.reporting = true
	l.node.run(func() {
		for l.node.ctx.Err() == nil {
			gone, more := l.next(w)
			if !more {
				return
			}
			gone.Fences = l.node.unanchored(l.node.ctx, gone.Fences)
			if len(gone.Fences)+len(gone.Tickets) == 0 {
				// The neighbour who has the anchors will report it, unless it dies.
				pause(l.node.ctx, neighbourWait)
				continue
			}
			l.going(w, gone.Fences)
			if l.node.gossip != nil {
				l.node.gossip.spread(gone)
			}
			if _, err := l.node.Submit(l.node.ctx, gone); err != nil {
				l.node.log.Warn("a death is not reported yet", "process", w.key, "error", err)
				pause(l.node.ctx, reportAgain)
				continue
			}
			l.settled(gone)
		}
	})
}

// next is what is to be reported of a dead process now.
func (l *liveness) next(w *ward) (fsm.ProcessGone, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gone := fsm.ProcessGone{Process: w.process}
	for f := range w.fences {
		if len(gone.Fences) < maxReport && l.anchors[f] == nil {
			gone.Fences = append(gone.Fences, f)
		}
	}
	for t := range w.tickets {
		if len(gone.Tickets) < maxReport {
			gone.Tickets = append(gone.Tickets, t)
		}
	}
	slices.Sort(gone.Fences)
	slices.Sort(gone.Tickets)
	if len(gone.Fences)+len(gone.Tickets) == 0 {
		w.reporting = false
		return gone, false
	}
	return gone, true
}

// going notes that a death is on its way for these fences.
func (l *liveness) going(w *ward, fences []fsm.Fence) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range fences {
		if _, ok := w.fences[f]; !ok {
			continue // over meanwhile
		}
		if w.reported == nil {
			w.reported = make(map[fsm.Fence]struct{})
		}
		w.reported[f] = struct{}{}
	}
}

// settled drops what the cluster has answered for. The events of it may come
// later, or, if it was over before, not at all.
func (l *liveness) settled(gone fsm.ProcessGone) {
	l.mu.Lock()
	defer l.unlock()
	for _, f := range gone.Fences {
		l.overFence(f)
	}
	for _, t := range gone.Tickets {
		l.dropTicket(t)
	}
}

// pending are the deaths that the cluster has not answered for.
func (l *liveness) pending() []fsm.ProcessGone {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []fsm.ProcessGone
	for w := range l.dead {
		gone := fsm.ProcessGone{Process: w.process}
		for f := range w.reported {
			gone.Fences = append(gone.Fences, f)
		}
		for t := range w.tickets {
			gone.Tickets = append(gone.Tickets, t)
		}
		if len(gone.Fences)+len(gone.Tickets) > 0 {
			list = append(list, gone)
		}
	}
	return list
}

func (l *liveness) close() error {
	if l == nil || l.procs == nil {
		return nil
	}
	return l.procs.Close()
}

// pause waits, but not longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
