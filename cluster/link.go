package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

const (
	dialTimeout  = 2 * time.Second
	pingInterval = time.Second
	pingTimeout  = 5 * time.Second // without any frame from the other side

	redialMin = 50 * time.Millisecond
	redialMax = time.Second
)

// link is this node's connection to one server, redialed for as long as that
// server is part of the cluster. It is a route when that server leads.
type link struct {
	node *Node
	id   string
	log  func(msg string, args ...any)

	mu     sync.Mutex
	addr   string
	out    *outbox // nil while down
	boot   string  // of the server's process, as of the last welcome
	name   string  // the server's, likewise
	ended  bool    // that process is known to have ended
	member string  // the server's cluster, likewise
	place  place   // whose processes it watches, likewise
	nextID uint64
	asks   map[uint64]chan peerReply
	poke   chan struct{} // the address has changed: dial now
}

type peerReply struct {
	payload []byte
	err     error
}

func newLink(n *Node, id, addr string) *link {
	return &link{
		node: n, id: id, addr: addr,
		log:  n.log.Named("link").With("peer", id).Debug,
		asks: make(map[uint64]chan peerReply),
		poke: make(chan struct{}, 1),
	}
}

// setAddr moves the link to another address of the same server.
func (l *link) setAddr(addr string) {
	l.mu.Lock()
	changed := l.addr != addr
	l.addr = addr
	l.mu.Unlock()
	if changed {
		select {
		case l.poke <- struct{}{}:
		default:
		}
	}
}

func (l *link) up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out != nil
}

// boots is the boot and pid namespace of the processes that the server watches.
func (l *link) boots() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.place.Boot
}

func (l *link) cluster() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.member
}

// run keeps the link up until ctx ends.
func (l *link) run(ctx context.Context) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		was := l.lastBoot()
		err := l.connect(ctx)
		l.log("link down", "error", err)
		if l.died(was, err) {
			l.mu.Lock()
			l.ended = l.boot == was
			l.mu.Unlock()
			l.node.peers.turn() // a new leader may wait for it
			l.node.suspect(l.id)
		}
		if l.lastBoot() != "" && time.Since(began) > redialMax {
			delay = 0 // it was up: the first redial tells a crash from a cut, so it comes at once
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-l.poke:
		case <-timer.C:
		}
		timer.Stop()
		delay = min(max(2*delay, redialMin), redialMax)
		delay += rand.N(delay / 4)
	}
}

func (l *link) lastBoot() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.boot
}

// died reports whether the server's process is known to have ended since its last
// welcome: nobody listens where it did, or another process answers in its place.
func (l *link) died(was string, err error) bool {
	if was == "" {
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) || l.lastBoot() != was
}

// dead is the server's name if its process is known to have ended and no other one has
// answered in its place.
func (l *link) dead() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		return ""
	}
	return l.name
}

// called is the server's name; empty if it has never answered.
func (l *link) called() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.name
}

// connect dials, and serves the connection until it ends.
func (l *link) connect(ctx context.Context) error {
	l.mu.Lock()
	addr := l.addr
	l.mu.Unlock()
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := l.node.dialPeer(dctx, addr, HeaderPeer)
	if err != nil {
		return fmt.Errorf("dial %s: %w", addr, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()

	r := bufio.NewReader(conn)
	welcome, err := l.greet(conn, r)
	if err != nil {
		return err
	}
	out := newOutbox(conn)
	var writer sync.WaitGroup
	writer.Go(out.run)
	defer writer.Wait()
	defer out.close()

	l.mu.Lock()
	replaced := l.boot != "" && l.boot != welcome.Boot
	l.boot, l.member, l.place = welcome.Boot, welcome.Cluster, welcome.Place
	l.name, l.ended = welcome.Name, false
	l.out = out
	l.mu.Unlock()
	if replaced {
		// Its predecessor died so fast that no redial was ever refused.
		l.node.suspect(l.id)
	}
	l.node.linkUp(l, welcome)
	defer func() {
		l.mu.Lock()
		l.out = nil
		asks := l.asks
		l.asks = make(map[uint64]chan peerReply)
		l.mu.Unlock()
		for _, ch := range asks {
			ch <- peerReply{err: errLinkDown}
		}
		l.node.linkDown(l)
	}()

	pingCtx, endPings := context.WithCancel(ctx)
	defer endPings()
	writer.Go(func() { l.ping(pingCtx, out) })
	return l.read(conn, r)
}

// greet says hello and reads the welcome.
func (l *link) greet(conn net.Conn, r *bufio.Reader) (peerWelcome, error) {
	var w peerWelcome
	if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return w, fmt.Errorf("greet: %w", err)
	}
	if _, err := conn.Write(transport.AppendFrame(nil, frameHello, mustJSON(l.node.hello()))); err != nil {
		return w, fmt.Errorf("greet: %w", err)
	}
	kind, b, err := transport.ReadFrame(r, nil, maxHello)
	if err != nil {
		return w, fmt.Errorf("greet: %w", err)
	}
	if kind != frameWelcome || json.Unmarshal(b, &w) != nil {
		return w, fmt.Errorf("greet: %w", errPeerGarbage)
	}
	if w.Removed {
		l.node.toldRemoved(w.Cluster)
	}
	if w.Error != "" {
		l.node.log.Warn("turned away by another node", "peer", w.Name, "reason", w.Error)
		return w, fmt.Errorf("turned away: %s", w.Error)
	}
	if l.id != "" && w.ID != l.id {
		return w, fmt.Errorf("another node (%s) answers at the address of %s", w.ID, l.id)
	}
	return w, conn.SetDeadline(time.Time{})
}

func (l *link) ping(ctx context.Context, out *outbox) {
	t := time.NewTicker(pingInterval)
	defer t.Stop()
	for {
		l.proveLife(out)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (l *link) proveLife(out *outbox) {
	b := binary.AppendUvarint(nil, uint64(l.node.ledger.incarnation()))
	if l.node.space.isLow() {
		b = append(b, pingLowDisk)
	}
	out.send(framePing, b)
}

func (l *link) read(conn net.Conn, r *bufio.Reader) error {
	var buf []byte
	for {
		if err := conn.SetReadDeadline(time.Now().Add(pingTimeout)); err != nil {
			return err
		}
		kind, b, err := transport.ReadFrame(r, buf, maxPeerFrame)
		if err != nil {
			return err
		}
		if err := l.handle(kind, b); err != nil {
			return err
		}
		buf = b[:0]
		if cap(buf) > outboxKeep {
			buf = nil
		}
	}
}

func (l *link) handle(kind byte, b []byte) error {
	switch kind {
	case framePong:
	case frameLeader:
		var p peerLeader
		if err := json.Unmarshal(b, &p); err != nil {
			return fmt.Errorf("%w: %w", errPeerGarbage, err)
		}
		l.node.heardLeader(p)
	case frameResults:
		return eachAnswer(b, l.node.ledger.answer)
	case frameBounced:
		l.node.ledger.bounce(l)
	case frameEvents:
		events, err := decodeEvents(b)
		if err != nil {
			return err
		}
		l.node.ledger.deliver(events)
		if l.node.replica == nil {
			l.node.liveness.note(events)
		}
	case frameOrders:
		events, err := decodeEvents(b)
		if err != nil {
			return err
		}
		l.node.orders.note(events)
	case frameReply:
		return l.reply(b)
	case frameWhich:
		return l.tell(b)
	case frameGivenUp:
		inc, _, err := uvarint(b)
		if err != nil {
			return err
		}
		l.node.ledger.givenUp(fsm.Incarnation(inc))
	case frameRemoved:
		l.node.toldRemoved(string(b))
	}
	return nil // kinds of a later release are none of our business
}

func (l *link) reply(b []byte) error {
	id, b, err := uvarint(b)
	if err != nil || len(b) == 0 {
		return errPeerGarbage
	}
	l.mu.Lock()
	ch := l.asks[id]
	delete(l.asks, id)
	l.mu.Unlock()
	if ch == nil {
		return nil // whoever asked has given up
	}
	if b[0] != replyOK {
		ch <- peerReply{err: remoteError(string(b[1:]))}
		return nil
	}
	ch <- peerReply{payload: append([]byte(nil), b[1:]...)}
	return nil
}

// propose implements route.
func (l *link) propose(p fsm.Proposal) {
	l.mu.Lock()
	out := l.out
	l.mu.Unlock()
	if out != nil {
		out.send(framePropose, fsm.AppendProposal(nil, p))
	}
}

// ask makes a request of the server and waits for its answer.
func (l *link) ask(ctx context.Context, method byte, payload []byte) ([]byte, error) {
	ch := make(chan peerReply, 1)
	l.mu.Lock()
	out := l.out
	if out == nil {
		l.mu.Unlock()
		return nil, errLinkDown
	}
	l.nextID++
	id := l.nextID
	l.asks[id] = ch
	l.mu.Unlock()
	if method == askLook {
		// What happens after the answer is pushed to us: the server has to know the
		// way by then.
		l.proveLife(out)
	}
	b := append(binary.AppendUvarint(nil, id), method)
	out.send(frameAsk, append(b, payload...))
	select {
	case r := <-ch:
		return r.payload, r.err
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.asks, id)
		l.mu.Unlock()
		return nil, context.Cause(ctx)
	}
}

// remoteError is an error that another node answered with.
type remoteError string

func (e remoteError) Error() string { return string(e) }
