package cluster

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// Names are looked up again after lookupKeep, found or not: at most maxLookups at
	// a time, each for lookupLimit at most.
	lookupKeep  = 30 * time.Second
	lookupLimit = 5 * time.Second
	maxLookups  = 8

	// maxRemotes bounds the hosts known by name. Processes of further ones are not
	// asked for.
	maxRemotes = 4096

	// membersKeep is how long a list of the members' hosts is good.
	membersKeep = time.Second
)

// remoteHost is a host by the name that its processes have given.
type remoteHost struct {
	name      string
	addrs     []netip.Addr
	until     time.Time // when to look up again
	wanted    bool      // in polls.wanted, or being looked up
	boots     map[string]int
	processes int
}

// ambiguous reports whether the name stands for two hosts, or for one before and
// after a reboot. There is no telling which of them a pidstatd would answer for.
func (h *remoteHost) ambiguous() bool { return len(h.boots) > 1 }

// host finds or adds the host of a process, and counts it there; nil if there are
// too many.
func (p *polls) host(q fsm.Process) *remoteHost {
	h := p.hosts[q.Host]
	if h == nil {
		if len(p.hosts) >= maxRemotes {
			return nil
		}
		h = &remoteHost{name: q.Host, boots: make(map[string]int)}
		p.hosts[q.Host] = h
	}
	h.processes++
	if boot, _, _ := strings.Cut(q.Boot, "/"); boot != "" {
		h.boots[boot]++
	}
	return h
}

func (p *polls) leaveHost(t *polled) {
	h := t.host
	if boot, _, _ := strings.Cut(t.process.Boot, "/"); boot != "" {
		if h.boots[boot]--; h.boots[boot] == 0 {
			delete(h.boots, boot)
		}
	}
	if h.processes--; h.processes == 0 {
		delete(p.hosts, t.process.Host)
	}
}

// address says where to ask for a process now, and notes that it is done; ok is
// false as long as that is not known.
func (p *polls) address(q fsm.Process) (at netip.Addr, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.all[q]
	if t == nil || t.host.ambiguous() {
		return at, false
	}
	h := t.host
	if !time.Now().Before(h.until) {
		p.want(h)
	}
	if len(h.addrs) == 0 {
		return at, false
	}
	at = h.addrs[t.asks%len(h.addrs)]
	t.asks++
	t.asked = time.Now()
	return at, true
}

// want has the addresses of a host looked up. That is for hosts without a node alone:
// a farm's thousands of others must not cost a lookup each.
func (p *polls) want(h *remoteHost) {
	if !h.wanted {
		h.wanted = true
		p.wanted = append(p.wanted, h)
	}
}

// lookUp starts the lookups that are wanted.
func (p *polls) lookUp(ctx context.Context, run func(func())) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wanted) == 0 {
		return
	}
	if p.remote == nil {
		r, err := p.node.openRemote()
		if err != nil {
			if !p.failed {
				p.node.log.Warn("pidstatds cannot be asked; trying on", "error", err)
			}
			p.failed = true
			return
		}
		p.remote = r
	}
	for len(p.wanted) > 0 && p.lookups < maxLookups {
		h := p.wanted[0]
		p.wanted = p.wanted[1:]
		if p.hosts[h.name] == h {
			p.lookups++
			run(func() { p.lookup(ctx, h) })
		}
	}
}

// lookup finds the addresses of a host.
func (p *polls) lookup(ctx context.Context, h *remoteHost) {
	limited, end := context.WithTimeout(ctx, lookupLimit)
	defer end()
	addrs, err := p.remote.Lookup(limited, h.name)
	if err != nil && ctx.Err() == nil {
		p.node.log.Debug("processes of a host are not asked for", "host", h.name, "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h.addrs, h.wanted, h.until = addrs, false, time.Now().Add(lookupKeep)
	p.lookups--
}

// members knows on which hosts a node of ours watches. It is used by one goroutine.
type members struct {
	node *Node
	full map[string][]string // names by their first labels
	at   time.Time
}

// watch reports whether a process is on a host where a node of ours is: that node
// says when it ends, and knows of anchors, even while it is out of touch with this
// one. Names are compared as people mean them (see Node.onHost): to ask a pidstatd
// less is to be on the safe side.
func (m *members) watch(q fsm.Process) bool {
	if m.node.peers.watch(q) {
		return true
	}
	if now := time.Now(); m.full == nil || now.Sub(m.at) >= membersKeep {
		m.at = now
		m.refresh()
	}
	for _, name := range m.full[firstLabel(q.Host)] {
		if m.node.onHost(name, q.Host) {
			return true
		}
	}
	return false
}

func (m *members) refresh() {
	n := m.node
	m.full = make(map[string][]string)
	add := func(names ...string) {
		for _, name := range names {
			key := firstLabel(name)
			m.full[key] = append(m.full[key], name)
		}
	}
	if n.liveness.procs != nil {
		add(n.liveness.place.Hosts...)
	}
	for _, p := range n.peers.places() {
		add(p.Hosts...)
	}
	if n.gossip == nil {
		return
	}
	for _, other := range n.gossip.all() {
		if other.ID != n.id {
			add(other.Host)
		}
	}
}

func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}
