package pidprobe

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// subscriptionTime is how long one is kept that is not renewed. Clients renew
	// theirs every second.
	subscriptionTime = 5 * time.Second
	expireEvery      = time.Second
	// Bounds of memory, and of the datagrams that one death makes us send, to one
	// address (IPv6: network of 64 bits) and in all.
	maxSubscriptions       = 16384
	maxSourceSubscriptions = 1024
	// subscribeRate bounds the new ones a second: a look into /proc each, which is
	// ten times the work of an answer. Who is over polls for a second more.
	subscribeRate = 5000
)

// subscriptions are the wishes to be told of an end. A server that is asked nothing
// of the kind has an empty table, and neither goroutine nor descriptor for it.
//
// Invariants: a subscription is in each of the three maps or in none; the watcher
// watches the keys of byProcess, and these are known by their start. A subscription
// ends with its one push, or when it has not been renewed; whoever asks again gets
// another. Whatever is pushed claims nothing: the one told has to ask.
type subscriptions struct {
	conn   *net.UDPConn
	start  time.Time // from which times count
	pushed atomic.Uint64

	mu        sync.Mutex
	closed    bool
	watcher   *Watcher // since the first
	expiry    *time.Timer
	max       int // processes at most
	opened    bucket
	byAsker   map[asker]*subscription
	byProcess map[Process]map[*subscription]struct{}
	bySource  map[sourceKey]int
}

// asker is who wants to be told, and of whom.
type asker struct {
	peer unix.RawSockaddrInet6
	pid  int32
	host string
}

type subscription struct {
	asker   asker
	source  sourceKey
	process Process
	birth   string
	renewed time.Duration

	// What to send, where to, and from where.
	push    []byte
	to      netip.AddrPort
	control []byte
}

func newSubscriptions(conn *net.UDPConn, start time.Time) *subscriptions {
	return &subscriptions{
		conn:      conn,
		start:     start,
		max:       budget() / 4,
		byAsker:   make(map[asker]*subscription),
		byProcess: make(map[Process]map[*subscription]struct{}),
		bySource:  make(map[sourceKey]int),
	}
}

// ask makes or renews the subscription of question q, which came as datagram i of b
// and is about a process that exists. host is for the push. It returns a verdict on
// the process meant, and its birth if the end will be told.
func (s *subscriptions) ask(now time.Duration, q *question, host []byte, b *batch, i int) (Verdict, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.byAsker[asker{b.grams[i].peer, q.pid, string(q.host)}]
	if sub != nil && string(q.birth) == sub.birth {
		sub.renewed = now
		return Alive, sub.birth
	}
	if s.closed || !s.opened.take(now, subscribeRate) {
		return Alive, ""
	}
	p, err := Lookup(q.pid)
	if errors.Is(err, ErrDead) {
		return Dead, ""
	}
	birth := p.birth()
	switch {
	case err != nil || birth == "":
		return Alive, ""
	case p.bornAnew(q.birth):
		return Dead, ""
	}
	if sub != nil {
		// Without its birth the question is a new one, whoever asked before.
		s.drop(sub)
	}
	if !s.room(b.source(i), p) {
		return Alive, ""
	}
	s.add(&subscription{
		asker:   asker{b.grams[i].peer, q.pid, string(q.host)},
		source:  b.source(i),
		process: p,
		birth:   birth,
		renewed: now,
		push:    appendAnswer(nil, q.number, Unknown, host, ""),
		to:      b.peer(i),
		control: b.ownAddress(i),
	})
	return Alive, birth
}

// room says whether there can be another subscription, and opens the watcher for
// the first.
func (s *subscriptions) room(from sourceKey, p Process) bool {
	if len(s.byAsker) >= maxSubscriptions || s.bySource[from] >= maxSourceSubscriptions {
		return false
	}
	if s.byProcess[p] == nil && len(s.byProcess) >= s.max {
		return false
	}
	if s.watcher == nil {
		// Without a pidfd for a process it looks twice a second, which is still more
		// often than the one who asks would: nothing to warn of.
		w, err := NewWatcher(s.ended, nil)
		if err != nil {
			return false // of descriptors or memory, for now
		}
		s.watcher = w
		s.expiry = time.AfterFunc(expireEvery, s.expire)
	}
	return true
}

func (s *subscriptions) add(sub *subscription) {
	if len(s.byAsker) == 0 {
		s.expiry.Reset(expireEvery)
	}
	s.byAsker[sub.asker] = sub
	s.bySource[sub.source]++
	subs := s.byProcess[sub.process]
	if subs == nil {
		subs = make(map[*subscription]struct{})
		s.byProcess[sub.process] = subs
		_ = s.watcher.Watch(sub.process) // neither closed nor no process
	}
	subs[sub] = struct{}{}
}

func (s *subscriptions) drop(sub *subscription) {
	delete(s.byAsker, sub.asker)
	if s.bySource[sub.source]--; s.bySource[sub.source] == 0 {
		delete(s.bySource, sub.source)
	}
	subs := s.byProcess[sub.process]
	delete(subs, sub)
	if len(subs) == 0 {
		delete(s.byProcess, sub.process)
		s.watcher.Unwatch(sub.process)
	}
}

// expire drops what has not been renewed, as long as there is anything.
func (s *subscriptions) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := time.Since(s.start) - subscriptionTime
	for _, sub := range s.byAsker {
		if sub.renewed < oldest {
			s.drop(sub)
		}
	}
	if len(s.byAsker) > 0 && !s.closed {
		s.expiry.Reset(expireEvery)
	}
}

// ended tells of the end of a process.
func (s *subscriptions) ended(p Process) {
	s.mu.Lock()
	var told []*subscription
	for sub := range s.byProcess[p] {
		told = append(told, sub)
	}
	for _, sub := range told {
		s.drop(sub)
	}
	s.mu.Unlock()
	for _, sub := range told {
		// It may be lost here as on the way.
		if _, _, err := s.conn.WriteMsgUDPAddrPort(sub.push, sub.control, sub.to); err == nil {
			s.pushed.Add(1)
		}
	}
}

// close ends all subscriptions without a word: the clients poll on.
func (s *subscriptions) close() {
	s.mu.Lock()
	s.closed = true
	w := s.watcher
	for _, sub := range s.byAsker {
		s.drop(sub)
	}
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.mu.Unlock()
	if w != nil {
		_ = w.Close()
	}
}

// peer is where datagram i came from.
func (b *batch) peer(i int) netip.AddrPort {
	peer := &b.grams[i].peer
	if peer.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(peer))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), hostOrder(v4.Port))
	}
	addr := netip.AddrFrom16(peer.Addr)
	if peer.Scope_id != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(peer.Scope_id), 10))
	}
	return netip.AddrPortFrom(addr, hostOrder(peer.Port))
}

// hostOrder turns a port of a socket address into a number.
func hostOrder(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}

// ownAddress is a copy of the control message that makes an answer to datagram i leave
// from the address to which that came.
func (b *batch) ownAddress(i int) []byte {
	b.keepAddress(i)
	n := int(b.headers[i].Controllen)
	text := make([]byte, n)
	copy(text, unsafe.Slice((*byte)(unsafe.Pointer(&b.grams[i].control[0])), n))
	return text
}
