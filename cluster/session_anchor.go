package cluster

import (
	"errors"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

// anchor serves ANCHOR: from its answer on, the connection says by being open what
// it has to say. It ends the session.
func (s *session) anchor(q transport.Request) bool {
	if len(s.held) > 0 {
		return s.refuse(faultf(transport.WordBadRequest, "ANCHOR needs a connection of its own"))
	}
	p := fsm.Process{Host: q.Host, PID: q.PID, Start: q.Start, Boot: q.Boot}
	lift, err := s.node.Anchor(p, fsm.Fence(q.Fence), s.cutAnchor)
	if err != nil {
		return s.refuse(fault(err))
	}
	s.out = transport.AppendAnchored(s.out, q.Fence)
	s.anchored = true
	if s.flush() != nil || s.rest() {
		lift()
	}
	return false
}

// rest waits until an anchor is lifted, and reports whether it was the clients who
// did that. When the server stops it was not: the processes live on, and their
// hold must not end because of us.
func (s *session) rest() (lifted bool) {
	for {
		if !s.in.Empty() {
			return true
		}
		err := s.in.Fill()
		s.mu.Lock()
		stopped := s.stopping || s.ctx.Err() != nil
		cut := s.cut
		s.mu.Unlock()
		switch {
		case stopped:
			return false
		case cut:
			return true
		case err != nil && !errors.Is(err, errWoken):
			return true
		}
	}
}

// cutAnchor ends the session because its hold is over.
func (s *session) cutAnchor() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = true
	s.conn.SetReadDeadline(past)
}
