package fsm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Least bytes that an answer, a session, a hold and a wait take when encoded:
// what bounds the memory that a false count can ask for.
const (
	leastAnswer  = 10
	leastSession = 20
	leastHold    = 17
	leastWait    = 19
	leastTurn    = 5
)

// Restore makes a table from an encoded snapshot. It accepts nothing that
// violates an invariant of the table: [ErrNewer] for what a later release wrote,
// [ErrCorrupt] for everything else. It keeps nothing of b.
func Restore(b []byte) (*Machine, error) {
	m, err := restore(b)
	if err != nil {
		return nil, fmt.Errorf("reading a snapshot: %w", err)
	}
	return m, nil
}

func restore(b []byte) (*Machine, error) {
	r := &reader{b: b}
	if string(r.bytes(len(magic))) != magic {
		r.fail("not a snapshot of a lock table")
	}
	r.suspensions = r.versionTo(versionSuspended) == versionSuspended
	if len(r.b) < 4 {
		r.fail("cut short")
	}
	if r.err != nil {
		return nil, r.err
	}
	body := len(b) - 4
	if crc32.Checksum(b[:body], crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(b[body:]) {
		r.fail("checksum")
		return nil, r.err
	}
	r.b = r.b[:len(r.b)-4]

	m := New()
	m.now = r.millis()
	m.fence = Fence(r.uvarint())
	m.ticket = Ticket(r.uvarint())
	m.incarnation = Incarnation(r.uvarint())
	r.sessions(m)
	r.holds(m)
	r.waits(m)
	r.turns(m)
	r.away(m)
	r.removed(m)
	r.orders(m)
	if err := r.end(); err != nil {
		return nil, err
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return m, nil
}

func (r *reader) sessions(m *Machine) {
	for range r.count(maxSessions, leastSession, "nodes") {
		n := Node{Incarnation: Incarnation(r.uvarint()), Name: r.text(MaxHost, "node name")}
		copy(n.Nonce[:], r.bytes(len(n.Nonce)))
		s := &session{node: n, floor: r.uvarint(), waits: make(map[Ticket]*claim)}
		answers := r.count(maxAnswers, leastAnswer, "answers")
		for range answers {
			a := answer{seq: r.uvarint()}
			v := r.result()
			a.result = &v
			s.answers = append(s.answers, a)
		}
		if r.err != nil {
			return
		}
		m.sessions = append(m.sessions, s)
	}
}

func (r *reader) holds(m *Machine) {
	n := r.count(math.MaxInt32, leastHold, "holds")
	if likely := min(n, len(r.b)/64); likely > 0 {
		m.holds.grow(likely)
		m.locks = make(map[string]*lock, likely)
		m.asks = make(map[Ask]*claim, likely)
	}
	last, jobs := Fence(0), false
	for range n {
		h := r.hold()
		if r.err == nil && h.Fence <= last {
			r.fail("fence %d after %d", h.Fence, last)
		}
		r.vacant(m, claimant{h.Owner, h.ID}, h.Locks, h.Ask)
		if r.err != nil {
			return
		}
		last = h.Fence
		h.Process = m.intern(h.Process)
		m.addHold(h)
		jobs = jobs || h.ofJob()
	}
	if r.suspensions && !jobs {
		r.fail("no hold has a suspension")
	}
}

func (r *reader) hold() *Hold {
	h := &Hold{Fence: Fence(r.uvarint()), Ask: r.ask(), Owner: r.text(MaxOwner, "owner"), ID: r.id()}
	h.Locks = r.names()
	h.Mode = r.mode()
	h.Slots = uint32(r.upTo(math.MaxUint32, "slots"))
	h.Limit, h.Lease = r.millis(), r.millis()
	h.Granted, h.Renewed = r.millis(), r.millis()
	h.Process = r.process()
	flags := r.byte()
	known := byte(flagAutounlock | flagAttached)
	if r.suspensions {
		known |= flagSuspended | flagResumed
	}
	if flags&^known != 0 {
		r.fail("flags %#x", flags)
	}
	h.Autounlock, h.Attached = flags&flagAutounlock != 0, flags&flagAttached != 0
	if flags&flagSuspended != 0 {
		h.Suspended = r.suspension()
	}
	if flags&flagResumed != 0 {
		h.Resumed = r.suspension()
	}
	return h
}

func (r *reader) waits(m *Machine) {
	n := r.count(math.MaxInt32, leastWait, "waits")
	last := Ticket(0)
	for range n {
		w := &Wait{Ticket: Ticket(r.uvarint()), Ask: r.ask(), Since: r.millis(), Request: r.acquire()}
		if r.err == nil && w.Ticket <= last {
			r.fail("ticket %d after %d", w.Ticket, last)
		}
		r.vacant(m, claimant{w.Request.Owner, w.Request.ID}, w.Request.Locks, w.Ask)
		if r.err != nil {
			return
		}
		last = w.Ticket
		w.Request.Process = m.intern(w.Request.Process)
		m.addWait(w)
	}
}

func (r *reader) turns(m *Machine) {
	last := Millis(0)
	for range r.count(maxTurns, leastTurn, "turns") {
		v := turn{who: claimant{r.text(MaxOwner, "owner"), r.id()}, last: r.uvarint(), over: r.bool(), at: r.millis()}
		if _, ok := m.turns.get(v.who); r.err == nil && (ok || v.at < last || v.at > m.now || m.now-v.at >= turnSpan) {
			r.fail("turn of %s", brief(v.who.owner))
		}
		if r.err != nil {
			return
		}
		last = v.at
		m.turns.note(v)
	}
}

// away reads which nodes are away; snapshots of a time that knew of none end before,
// and the part behind begins with a zero.
func (r *reader) away(m *Machine) {
	if r.err != nil || len(r.b) == 0 || r.b[0] == 0 {
		return
	}
	n := r.count(maxSessions, 1, "nodes that are away")
	if n == 0 {
		r.fail("an empty list")
	}
	last := Incarnation(0)
	for range n {
		inc := Incarnation(r.uvarint())
		s := m.session(inc)
		if r.err == nil && (s == nil || inc <= last) {
			r.fail("incarnation %d is away", inc)
		}
		if r.err != nil {
			return
		}
		last = inc
		s.node.Away = true
		for _, c := range s.claims() {
			c.stepAside()
		}
	}
}

// vacant fails unless a claim can be entered beside those that are there: what
// the indexes cannot express could not be found by Check afterwards.
func (r *reader) vacant(m *Machine, who claimant, locks []string, ask Ask) {
	if r.err != nil {
		return
	}
	if len(locks) == 0 {
		r.fail("a claim on no lock")
		return
	}
	for _, name := range locks {
		if l := m.locks[name]; l != nil && l.find(who) != nil {
			r.fail("two claims of one claimant on %s", brief(name))
			return
		}
	}
	if m.asks[ask] != nil {
		r.fail("two claims of one request")
	}
}
