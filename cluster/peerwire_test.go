package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
	"github.com/lockerd/lockerd/transport/pipenet"
)

// FuzzPeerFrames feeds a server and a node what their peers should never send.
// Whatever it is, it is taken, or refused as garbage; nothing gets into the table.
func FuzzPeerFrames(f *testing.F) {
	ask := func(method byte, payload string) []byte {
		return append(append(binary.AppendUvarint(nil, 1), method), payload...)
	}
	f.Add(byte(framePing), binary.AppendUvarint(nil, 3))
	f.Add(byte(framePropose), fsm.AppendProposal(nil, fsm.Proposal{Ask: fsm.Ask{Node: 1, Seq: 2}, Command: fsm.Acquire{Owner: "amy", Locks: []string{"a"}}}))
	f.Add(byte(frameAsk), ask(askLook, `[{"Ask":{"Node":1,"Seq":2}}]`))
	f.Add(byte(frameAsk), ask(askStatus, `{"owner":"amy","locks":["a"]}`))
	f.Add(byte(frameAsk), ask(askTable, "\x01"))
	f.Add(byte(frameAsk), ask(askDead, `{"Host":"h","PID":7}`))
	f.Add(byte(frameAsk), ask(askCharges, `{"hosts":["h"]}`))
	f.Add(byte(frameAsk), ask('?', ""))
	f.Add(byte(frameResults), appendAnswer(nil, fsm.Ask{Node: 1, Seq: 2}, fsm.Result{Code: fsm.Granted, Fence: 4, Locks: []string{"a"}}))
	f.Add(byte(frameEvents), fsm.AppendEvent(nil, fsm.Event{Kind: fsm.EventGranted, Ask: fsm.Ask{Node: 1, Seq: 2}, Fence: 4, Locks: []string{"a"}}))
	f.Add(byte(frameLeader), []byte(`{"id":"n1","addr":"n1:1","term":4}`))
	f.Add(byte(frameAnchors), []byte("\x01[7]"))
	f.Add(byte(frameWhich), []byte("\x01[7,8]"))
	f.Add(byte(frameReply), append(binary.AppendUvarint(nil, 1), replyError, 'x'))
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		n := &Node{
			log: testLogger("fuzz"), ledger: newLedger("n"), peers: newPeers(), replica: quietReplica(),
			links: make(map[string]*linkRun), changed: make(chan struct{}), done: make(chan struct{}), cfg: Config{Name: "n", NoLeaderGrace: time.Millisecond},
		}
		n.ctx, n.cancel = context.WithCancelCause(context.Background())
		n.liveness = &liveness{node: n}
		near, far := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		p := newPeer(n, near)
		l := newLink(n, "s", "s:1")
		for _, err := range []error{p.handle(kind, bytes.Clone(b)), l.handle(kind, bytes.Clone(b))} {
			if err != nil && !errors.Is(err, errPeerGarbage) {
				t.Errorf("kind %q: %v", kind, err)
			}
		}
		n.cancel(ErrClosed)
		n.wg.Wait()
		_ = near.Close()
		_ = far.Close()
		if c := n.replica.machine.Counts(); c.Holds+c.Waits+c.Nodes > 0 {
			t.Errorf("in the table: %+v", c)
		}
	})
}

func TestAnswersAndEventsSurviveTheWire(t *testing.T) {
	var b []byte
	asks := []fsm.Ask{{Node: 1, Seq: 2}, {}, {Node: ^fsm.Incarnation(0), Seq: ^uint64(0)}}
	for i, a := range asks {
		b = appendAnswer(b, a, fsm.Result{Code: fsm.Granted, Fence: fsm.Fence(i), Locks: []string{"a", "b"}})
	}
	var got []fsm.Ask
	if err := eachAnswer(b, func(a fsm.Ask, r fsm.Result) { got = append(got, a) }); err != nil || !slices.Equal(got, asks) {
		t.Errorf("%v, %v", got, err)
	}
	for cut := 1; cut < len(b); cut++ {
		if err := eachAnswer(b[:cut], func(fsm.Ask, fsm.Result) {}); err != nil && !errors.Is(err, errPeerGarbage) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	if _, err := decodeEvents([]byte("garbage")); !errors.Is(err, errPeerGarbage) {
		t.Errorf("events: %v", err)
	}
}

// outboxPair is an outbox and the far end of its connection.
func outboxPair(t *testing.T) (*outbox, net.Conn, *pipenet.Net) {
	t.Helper()
	nw := pipenet.New()
	ln, err := nw.Listen("b")
	if err != nil {
		t.Fatal(err)
	}
	near, err := nw.Dial(context.Background(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	return newOutbox(near), far, nw
}

// TestOutboxSendsAllInOrder has many senders and a reader; what was sent before
// close arrives, each sender's frames in order.
func TestOutboxSendsAllInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, far, _ := outboxPair(t)
		var writer, senders sync.WaitGroup
		writer.Go(o.run)
		const each = 500
		for s := range byte(4) {
			senders.Go(func() {
				for i := range each {
					o.send(s, binary.AppendUvarint(nil, uint64(i)))
				}
			})
		}
		go func() {
			senders.Wait()
			o.close()
			o.send(9, nil) // to nobody
			writer.Wait()
			_ = o.conn.Close()
		}()
		next := make([]uint64, 4)
		for r := bufio.NewReader(far); ; {
			kind, b, err := transport.ReadFrame(r, nil, 1<<10)
			if err != nil {
				break
			}
			i, _, err := uvarint(b)
			if err != nil || int(kind) >= len(next) || i != next[kind] {
				t.Fatalf("sender %d: frame %d, want %d (%v)", kind, i, next[kind], err)
			}
			next[kind]++
		}
		if !slices.Equal(next, []uint64{each, each, each, each}) {
			t.Errorf("arrived: %v", next)
		}
		_ = far.Close()
	})
}

// TestOutboxCutsOffWhoReadsNothing fills an outbox to its bound: the sender never
// waits, and the connection ends.
func TestOutboxCutsOffWhoReadsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, far, _ := outboxPair(t)
		var writer sync.WaitGroup
		writer.Go(o.run)
		began := time.Now()
		frame := make([]byte, 1<<20)
		for range 2*maxOutbox/len(frame) + 2 {
			o.send(1, frame)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the sender waited for %v", took)
		}
		writer.Wait()
		if len(o.buf) > maxOutbox+2*len(frame) {
			t.Errorf("%d bytes are kept", len(o.buf))
		}
		_ = far.Close()
	})
}

// TestOutboxGivesUpOnASilentPeer writes over a cut link.
func TestOutboxGivesUpOnASilentPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, far, nw := outboxPair(t)
		nw.UserTimeout = 0
		nw.Cut("a", "b")
		began := time.Now()
		o.send(1, make([]byte, 2*pipenet.Window))
		o.run()
		if took := time.Since(began); took != peerWriteTimeout {
			t.Errorf("gave up after %v", took)
		}
		nw.Heal()
		_ = far.Close()
	})
}

// stuckPipeline never takes another request.
type stuckPipeline struct {
	raft.AppendPipeline
	closed chan struct{}
	once   sync.Once
}

func (p *stuckPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-p.closed
	return nil, raft.ErrPipelineShutdown
}

func (p *stuckPipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func TestAStuckPipelineEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &pipeline{AppendPipeline: &stuckPipeline{closed: make(chan struct{})}, stop: func() bool { return true }}
		began := time.Now()
		if _, err := p.AppendEntries(nil, nil); !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(began); took > 2*raftTimeout {
			t.Errorf("stuck for %v", took)
		}
	})
}

// TestALookFitsAFrame asks for the largest requests there can be.
func TestALookFitsAFrame(t *testing.T) {
	list := make([]standing, lookBatch)
	for i := range list {
		list[i] = standing{Ask: fsm.Ask{Node: ^fsm.Incarnation(0), Seq: ^uint64(0)}, Owner: strings.Repeat("\x01", fsm.MaxOwner)}
		for range fsm.MaxLocks {
			list[i].Locks = append(list[i].Locks, strings.Repeat("<", fsm.MaxName)) // as six bytes of JSON each
		}
	}
	if size := len(mustJSON(list)); size > maxPeerRequest {
		t.Errorf("%d bytes", size)
	}
}
