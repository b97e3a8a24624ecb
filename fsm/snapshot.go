package fsm

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"hash/fnv"
	"slices"
)

// magic begins every encoded snapshot.
const magic = "lkdtable"

// versionSuspended is that of snapshots in which holds have suspensions. The others have
// the version that releases without them can read.
const versionSuspended = 2

// chunkSize is what Encode writes at a time, roughly.
const chunkSize = 64 << 10

// Snapshot is the table as it was at one moment. It is immutable: any goroutine
// may read it while the machine goes on.
type Snapshot struct {
	now         Millis
	fence       Fence
	ticket      Ticket
	incarnation Incarnation
	sessions    []memory
	holds       shared[Hold]
	waits       shared[Wait]
	turns       []turn
	removed     []RemoveServer
	orders      orders
}

// memory is a session as of the snapshot.
type memory struct {
	node    Node
	floor   uint64
	answers []answer
}

// Snapshot copies two tables of pages and the lists of what is remembered: well
// under a millisecond for a million holds. The changes that follow copy a page
// each, at first.
func (m *Machine) Snapshot() *Snapshot {
	s := &Snapshot{
		now:         m.now,
		fence:       m.fence,
		ticket:      m.ticket,
		incarnation: m.incarnation,
		sessions:    make([]memory, len(m.sessions)),
		holds:       m.holds.share(),
		waits:       m.waits.share(),
		turns:       m.turns.all(),
		removed:     m.removed,
		orders:      m.orders.clone(),
	}
	for i, o := range m.sessions {
		s.sessions[i] = memory{node: o.node, floor: o.floor, answers: slices.Clone(o.answers)}
	}
	return s
}

// Now returns the table's time.
func (s *Snapshot) Now() Millis { return s.now }

// Holds returns the holds, sorted by their first lock's name and then by fence.
// Every call sorts anew.
func (s *Snapshot) Holds() []*Hold {
	holds := s.holds.values()
	slices.SortFunc(holds, func(a, b *Hold) int {
		return cmp.Or(cmp.Compare(a.Locks[0], b.Locks[0]), cmp.Compare(a.Fence, b.Fence))
	})
	return holds
}

// Waits returns the waits, sorted by ticket. Every call sorts anew.
func (s *Snapshot) Waits() []*Wait {
	waits := s.waits.values()
	slices.SortFunc(waits, func(a, b *Wait) int { return cmp.Compare(a.Ticket, b.Ticket) })
	return waits
}

// Away tells whether a node was away.
func (s *Snapshot) Away(n Incarnation) bool {
	i, ok := slices.BinarySearchFunc(s.sessions, n, func(o memory, n Incarnation) int { return cmp.Compare(o.node.Incarnation, n) })
	return ok && s.sessions[i].node.Away
}

func (s *Snapshot) away() (away []Incarnation) {
	for _, o := range s.sessions {
		if o.node.Away {
			away = append(away, o.node.Incarnation)
		}
	}
	return away
}

// Encode writes the snapshot in chunks of about 64 KiB, for [Restore]. Equal
// tables give equal bytes:
//
//	magic, version (2 if a hold is suspended or was resumed a moment ago, 1 otherwise),
//	uvarints: Now, last fence, last ticket, last incarnation
//	uvarint count, sessions by incarnation, each with its answers by seq
//	uvarint count, holds by fence
//	uvarint count, waits by ticket
//	uvarint count, turns by time
//	uvarint count, incarnations that are away, rising; nothing if none is
//	zero, uvarint count, removed servers by time; nothing if there is none
//	zero, zero, uvarint last order, uvarint count, how many have ended by reason,
//	uvarint count, open orders by id, uvarint count, closed orders by time; nothing if
//	there never was an order
//	CRC-32C of all before it, 4 bytes, little-endian
//
// It stops at the first error of write, and returns that. write must not keep
// the slice.
func (s *Snapshot) Encode(write func([]byte) error) error {
	sum, castagnoli := uint32(0), crc32.MakeTable(crc32.Castagnoli)
	var b []byte
	flush := func(least int) error {
		if len(b) < least {
			return nil
		}
		sum = crc32.Update(sum, castagnoli, b)
		err := write(b)
		b = b[:0]
		return err
	}

	holds := s.holds.values()
	slices.SortFunc(holds, func(a, b *Hold) int { return cmp.Compare(a.Fence, b.Fence) })
	b = append(b, magic...)
	if slices.ContainsFunc(holds, (*Hold).ofJob) {
		b = append(b, versionSuspended)
	} else {
		b = append(b, version)
	}
	for _, v := range [...]uint64{uint64(s.now), uint64(s.fence), uint64(s.ticket), uint64(s.incarnation)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendUvarint(b, uint64(len(s.sessions)))
	for _, o := range s.sessions {
		b = binary.AppendUvarint(b, uint64(o.node.Incarnation))
		b = appendString(b, o.node.Name)
		b = append(b, o.node.Nonce[:]...)
		b = binary.AppendUvarint(b, o.floor)
		b = binary.AppendUvarint(b, uint64(len(o.answers)))
		for _, a := range o.answers {
			b = binary.AppendUvarint(b, a.seq)
			b = appendResult(b, *a.result)
			if err := flush(chunkSize); err != nil {
				return err
			}
		}
		if err := flush(chunkSize); err != nil {
			return err
		}
	}
	b = binary.AppendUvarint(b, uint64(len(holds)))
	for _, h := range holds {
		b = appendHold(b, h)
		if err := flush(chunkSize); err != nil {
			return err
		}
	}
	b = binary.AppendUvarint(b, uint64(s.waits.n))
	for _, w := range s.Waits() {
		b = binary.AppendUvarint(b, uint64(w.Ticket))
		b = appendAsk(b, w.Ask)
		b = binary.AppendUvarint(b, uint64(w.Since))
		b = appendAcquire(b, w.Request)
		if err := flush(chunkSize); err != nil {
			return err
		}
	}
	b = binary.AppendUvarint(b, uint64(len(s.turns)))
	for _, v := range s.turns {
		b = appendString(b, v.who.owner)
		b = appendID(b, v.who.id)
		b = binary.AppendUvarint(b, v.last)
		b = appendBool(b, v.over)
		b = binary.AppendUvarint(b, uint64(v.at))
		if err := flush(chunkSize); err != nil {
			return err
		}
	}
	// The first snapshots ended here.
	if away := s.away(); len(away) > 0 {
		b = appendNumbers(b, away)
	}
	b = appendRemoved(b, s.removed)
	if s.orders.last > 0 {
		b = binary.AppendUvarint(append(b, 0, 0), uint64(s.orders.last))
		b = appendEnded(b, s.orders.ended)
		for _, list := range [...][]*Order{s.orders.open, s.orders.closed} {
			b = binary.AppendUvarint(b, uint64(len(list)))
			for _, o := range list {
				b = appendOrder(b, o)
				if err := flush(chunkSize); err != nil {
					return err
				}
			}
		}
	}
	if err := flush(1); err != nil {
		return err
	}
	return write(binary.LittleEndian.AppendUint32(nil, sum))
}

// ofJob reports whether the hold has a suspension.
func (h *Hold) ofJob() bool { return h.Suspended != nil || h.Resumed != nil }

func appendHold(b []byte, h *Hold) []byte {
	b = binary.AppendUvarint(b, uint64(h.Fence))
	b = appendAsk(b, h.Ask)
	b = appendString(b, h.Owner)
	b = appendID(b, h.ID)
	b = appendStrings(b, h.Locks)
	b = append(b, byte(h.Mode))
	b = binary.AppendUvarint(b, uint64(h.Slots))
	b = binary.AppendUvarint(b, uint64(h.Limit))
	b = binary.AppendUvarint(b, uint64(h.Lease))
	b = binary.AppendUvarint(b, uint64(h.Granted))
	b = binary.AppendUvarint(b, uint64(h.Renewed))
	b = appendProcess(b, h.Process)
	var flags byte
	if h.Autounlock {
		flags |= flagAutounlock
	}
	if h.Attached {
		flags |= flagAttached
	}
	if h.Suspended != nil {
		flags |= flagSuspended
	}
	if h.Resumed != nil {
		flags |= flagResumed
	}
	b = append(b, flags)
	for _, s := range [...]*Suspension{h.Suspended, h.Resumed} {
		if s != nil {
			b = appendSuspension(b, s)
		}
	}
	return b
}

// Digest is a hash of the whole table: equal for equal tables. It costs as much
// as encoding a snapshot.
func (m *Machine) Digest() uint64 {
	h := fnv.New64a()
	m.Snapshot().Encode(func(b []byte) error {
		h.Write(b)
		return nil
	})
	return h.Sum64()
}
