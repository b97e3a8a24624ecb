package fsm

import (
	"cmp"
	"slices"
)

// session is what the table knows of an incarnation: which of its requests it
// has answered, and how.
type session struct {
	node    Node
	floor   uint64
	answers []answer // rising seq, all at or above floor
	waits   map[Ticket]*claim
}

// answer is the remembered result of a request. What result points to is never
// changed, so snapshots may share it.
type answer struct {
	seq    uint64
	result *Result
}

func (m *Machine) sessionIndex(n Incarnation) (int, bool) {
	return slices.BinarySearchFunc(m.sessions, n, func(s *session, n Incarnation) int {
		return cmp.Compare(s.node.Incarnation, n)
	})
}

func (m *Machine) session(n Incarnation) *session {
	if i, ok := m.sessionIndex(n); ok {
		return m.sessions[i]
	}
	return nil
}

func (m *Machine) addSession(n Node) *session {
	s := &session{node: n, waits: make(map[Ticket]*claim)}
	m.sessions = append(m.sessions, s)
	return s
}

func (s *session) find(seq uint64) (int, bool) {
	// Requests come nearly in order, so a new one is nearly always the last.
	if n := len(s.answers); n == 0 || s.answers[n-1].seq < seq {
		return n, false
	}
	return slices.BinarySearchFunc(s.answers, seq, func(a answer, seq uint64) int { return cmp.Compare(a.seq, seq) })
}

func (s *session) answer(seq uint64) *Result {
	if i, ok := s.find(seq); ok {
		return s.answers[i].result
	}
	return nil
}

func (s *session) remember(seq uint64, r Result) {
	r.Place = 0 // true only when it was first given
	i, ok := s.find(seq)
	if !ok {
		s.answers = slices.Insert(s.answers, i, answer{})
	}
	s.answers[i] = answer{seq: seq, result: &r}
}

// forget drops the answers below floor.
func (s *session) forget(floor uint64) {
	if floor <= s.floor {
		return
	}
	s.floor = floor
	n, _ := s.find(floor)
	clear(s.answers[:n])
	s.answers = s.answers[n:]
}

// follow changes the remembered answer of the request that had a claim to what
// has become of the claim. A repeated Acquire thus never hears of a hold that is
// over: it is told Done. A repeated Renew that attached itself is told NotHeld.
func (m *Machine) follow(ask Ask, r Result) {
	if ask.Node == 0 {
		return
	}
	s := m.session(ask.Node)
	if s == nil {
		return
	}
	if i, ok := s.find(ask.Seq); ok {
		now := r
		if was := s.answers[i].result; was.Code == Done {
			now = Result{Code: NotHeld, Fence: was.Fence}
		}
		s.answers[i].result = &now
	}
}

func (m *Machine) nodeJoin(c NodeJoin) Result {
	for _, s := range m.sessions {
		if s.node.Nonce == c.Nonce {
			if s.node.Name != c.Name {
				return refused("a node of another name has joined with that nonce: " + brief(s.node.Name))
			}
			return Result{Node: s.node.Incarnation}
		}
	}
	if len(m.sessions) >= maxSessions {
		return refused("too many nodes have joined")
	}
	m.incarnation++
	m.addSession(Node{Incarnation: m.incarnation, Name: c.Name, Nonce: c.Nonce})
	m.nameLost(c.Name, OrderNodeGone) // that node has been started anew
	m.settle()
	return Result{Node: m.incarnation}
}

func (m *Machine) nodeGone(c NodeGone) Result {
	i, ok := m.sessionIndex(c.Node)
	if !ok {
		return Result{}
	}
	s := m.sessions[i]
	for _, cl := range s.claims() {
		m.endWait(cl, EventWithdrawn, CauseNodeGone)
	}
	m.sessions = slices.Delete(m.sessions, i, i+1)
	m.nodeLost(s.node, OrderNodeGone)
	m.settle()
	return Result{}
}
