package fsm

import "slices"

// nodesAway has the places of nodes passed over from now on, and ends the orders that
// need them.
func (m *Machine) nodesAway(c NodesAway) Result {
	var claims []*claim
	var lost []Node
	for _, n := range c.Nodes {
		if s := m.session(n); s != nil && !s.node.Away {
			s.node.Away = true
			claims = append(claims, s.claims()...)
			lost = append(lost, s.node)
		}
	}
	slices.SortFunc(claims, byAge)
	for _, cl := range claims {
		cl.stepAside()
		m.events = append(m.events, m.waitEvent(EventAway, cl.wait))
	}
	// Who stood behind them may be granted what they could not be yet.
	for _, cl := range claims {
		m.touchAll(cl)
	}
	for _, n := range lost {
		m.nodeLost(n, OrderNodeAway)
	}
	m.settle()
	return Result{}
}

// nodesBack ends that.
func (m *Machine) nodesBack(nodes ...Incarnation) Result {
	var claims []*claim
	for _, n := range nodes {
		if s := m.session(n); s != nil && s.node.Away {
			s.node.Away = false
			claims = append(claims, s.claims()...)
		}
	}
	slices.SortFunc(claims, byAge)
	m.lineUp(claims...)
	m.settle()
	return Result{}
}

// stepAside takes a wait out of its queues. It keeps its ticket, and stays in the table.
func (c *claim) stepAside() {
	for i := range c.seats {
		s := &c.seats[i]
		s.lock.queue.remove(s)
		s.lock.aside.push(s)
	}
	c.away = true
}

// lineUp puts waits that stand aside back into their queues, by their tickets. They
// come in that order.
func (m *Machine) lineUp(claims ...*claim) {
	near := make(map[*lock]*seat)
	for _, c := range claims {
		for i := range c.seats {
			s := &c.seats[i]
			s.lock.aside.remove(s)
			s.lock.queue.insert(s, near[s.lock])
			near[s.lock] = s
		}
		c.away = false
		m.events = append(m.events, m.waitEvent(EventBack, c.wait))
	}
	for _, c := range claims {
		m.touchAll(c)
	}
}

func (m *Machine) touchAll(c *claim) {
	for i := range c.seats {
		m.touch(c.seats[i].lock)
	}
}

// claims returns the waits that came in by a session, by ticket.
func (s *session) claims() []*claim {
	list := make([]*claim, 0, len(s.waits))
	for _, c := range s.waits {
		list = append(list, c)
	}
	slices.SortFunc(list, byAge)
	return list
}
