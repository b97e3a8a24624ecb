package fsm

import "slices"

// host lists the autounlock claims whose processes run on one host.
type host struct {
	name string
	pids map[int32]*claim // head of a list through procNext
}

func (m *Machine) addProcess(p Process, c *claim) {
	h := m.hosts[p.Host]
	if h == nil {
		h = &host{name: p.Host, pids: make(map[int32]*claim)}
		m.hosts[p.Host] = h
	}
	c.procPrev, c.procNext = nil, h.pids[p.PID]
	if c.procNext != nil {
		c.procNext.procPrev = c
	}
	h.pids[p.PID] = c
}

// intern returns p with the string for its host that the table has already, so
// that a million claims of one host do not keep a million copies.
func (m *Machine) intern(p Process) Process {
	if h := m.hosts[p.Host]; h != nil {
		p.Host = h.name
	}
	return p
}

func (m *Machine) removeProcess(p Process, c *claim) {
	h := m.hosts[p.Host]
	switch {
	case c.procPrev != nil:
		c.procPrev.procNext = c.procNext
	case c.procNext != nil:
		h.pids[p.PID] = c.procNext
	default:
		delete(h.pids, p.PID)
		if len(h.pids) == 0 {
			delete(m.hosts, p.Host)
		}
	}
	if c.procNext != nil {
		c.procNext.procPrev = c.procPrev
	}
	c.procPrev, c.procNext = nil, nil
}

// endsWith reports whether the claim is to end with the process p. What only one
// side knows of the process's identity cannot tell them apart.
func (c *claim) endsWith(p Process) bool {
	q, ok := c.process()
	return ok && q.Host == p.Host && q.PID == p.PID &&
		(q.Start == p.Start || q.Start == 0 || p.Start == 0) &&
		(q.Boot == p.Boot || q.Boot == "" || p.Boot == "")
}

// ByProcess returns the autounlock holds, by fence, and waits, by ticket, of a
// process.
func (m *Machine) ByProcess(name string, pid int32) ([]*Hold, []*Wait) {
	h := m.hosts[name]
	if h == nil {
		return nil, nil
	}
	return split(chain(nil, h.pids[pid]))
}

// OnHost returns the same for every process of a host.
func (m *Machine) OnHost(name string) ([]*Hold, []*Wait) {
	h := m.hosts[name]
	if h == nil {
		return nil, nil
	}
	var all []*claim
	for _, c := range h.pids {
		all = chain(all, c)
	}
	return split(all)
}

func chain(dst []*claim, c *claim) []*claim {
	for ; c != nil; c = c.procNext {
		dst = append(dst, c)
	}
	return dst
}

func split(all []*claim) (holds []*Hold, waits []*Wait) {
	slices.SortFunc(all, byAge)
	for _, c := range all {
		if c.hold != nil {
			holds = append(holds, c.hold)
		} else {
			waits = append(waits, c.wait)
		}
	}
	return holds, waits
}
