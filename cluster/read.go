package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// Table is every hold and every wait at one moment. Its values must not be changed.
type Table struct {
	Now   fsm.Millis
	Holds []*fsm.Hold         // by first lock name, then fence
	Waits []*fsm.Wait         // by ticket
	Away  map[fsm.Ticket]bool // waits that are passed over, as their nodes are out of touch
}

// Status says whether owner holds one of locks, and else who holds the first busy
// one: see [fsm.Machine.Status]. It is linearizable.
func (n *Node) Status(ctx context.Context, owner string, locks []string) (fsm.Result, error) {
	if n.replica == nil {
		b, err := n.askServer(ctx, askStatus, mustJSON(statusQuery{Owner: owner, Locks: locks}))
		if err != nil {
			return fsm.Result{}, err
		}
		res, _, err := fsm.DecodeResult(b)
		return res, err
	}
	var res fsm.Result
	err := n.view(ctx, func(m *fsm.Machine) { res = m.Status(owner, locks) })
	return res, err
}

// Table returns every hold and wait, linearizably, or as this node has them at
// hand if stale is good enough.
func (n *Node) Table(ctx context.Context, stale bool) (Table, error) {
	now, snap, err := n.capture(ctx, stale)
	if err != nil {
		return Table{}, err
	}
	return asTable(now, snap), nil
}

func asTable(now fsm.Millis, snap *fsm.Snapshot) Table {
	t := Table{Now: now, Holds: snap.Holds(), Waits: snap.Waits(), Away: make(map[fsm.Ticket]bool)}
	for _, w := range t.Waits {
		if snap.Away(w.Ask.Node) {
			t.Away[w.Ticket] = true
		}
	}
	return t
}

// capture takes a snapshot of the table, here or, for an agent, at a server.
func (n *Node) capture(ctx context.Context, stale bool) (fsm.Millis, *fsm.Snapshot, error) {
	if n.replica == nil {
		flag := []byte{0}
		if stale {
			flag[0] = 1
		}
		b, err := n.askServer(ctx, askTable, flag)
		if err != nil {
			return 0, nil, err
		}
		m, err := fsm.Restore(b)
		if err != nil {
			return 0, nil, fmt.Errorf("read the table a server sent: %w", err)
		}
		return m.Now(), m.Snapshot(), nil
	}
	var leaders fsm.Millis
	if !stale {
		r, err := n.catchUp(ctx)
		if err != nil {
			return 0, nil, err
		}
		leaders = r.now
	}
	now, snap := n.replica.snapshot()
	return max(now, leaders), snap, nil
}

// view runs f on a table that holds everything committed before the call.
func (n *Node) view(ctx context.Context, f func(*fsm.Machine)) error {
	if _, err := n.catchUp(ctx); err != nil {
		return err
	}
	n.replica.view(f)
	return nil
}

// lookBatch bounds the requests of one question, so that even the largest fit
// [maxPeerRequest].
const lookBatch = 40

// look fills in what has become of other nodes' or our own requests.
func (n *Node) look(ctx context.Context, list []standing) error {
	if n.replica == nil {
		for part := range slices.Chunk(list, lookBatch) {
			b, err := n.askServer(ctx, askLook, mustJSON(part))
			if err != nil {
				return err
			}
			var got []standing
			if err := json.Unmarshal(b, &got); err != nil || len(got) != len(part) {
				return errPeerGarbage
			}
			copy(part, got)
		}
		return nil
	}
	return n.view(ctx, func(m *fsm.Machine) {
		for i := range list {
			list[i].look(m)
		}
	})
}

// catchUp waits until this replica holds everything committed before the call:
// it asks the leader for its index, and for that to be applied here.
func (n *Node) catchUp(ctx context.Context) (readIndex, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(n.ctx, func() { cancel(ErrClosed) })()
	for {
		changed := n.leaderChanged()
		r, err := n.readIndex(ctx)
		if err == nil {
			return r, n.replica.waitFor(ctx, r.index)
		}
		if err := n.awaitLeader(ctx, changed, err); err != nil {
			return readIndex{}, err
		}
	}
}

// readIndex asks the leader, which may be this node, for a read index.
func (n *Node) readIndex(ctx context.Context) (readIndex, error) {
	if n.office.Load() != nil {
		return n.ownReadIndex(ctx)
	}
	l := n.leaderLink()
	if l == nil {
		return readIndex{}, ErrNoLeader
	}
	b, err := l.ask(ctx, askIndex, nil)
	if err != nil {
		return readIndex{}, err
	}
	index, b, err := uvarint(b)
	if err != nil {
		return readIndex{}, err
	}
	now, _, err := uvarint(b)
	return readIndex{index: index, now: fsm.Millis(now)}, err
}

// askServer puts a question to a server, the leader if it is in reach.
func (n *Node) askServer(ctx context.Context, method byte, payload []byte) ([]byte, error) {
	for {
		changed := n.leaderChanged()
		var err error = ErrNoLeader
		if l := n.leaderLink(); l != nil {
			var b []byte
			b, err = l.ask(ctx, method, payload)
			var remote remoteError
			if err == nil || errors.As(err, &remote) {
				return b, err
			}
		}
		if err := n.awaitLeader(ctx, changed, err); err != nil {
			return nil, err
		}
	}
}

// ownReadIndex vouches that every entry up to the returned index, and no later
// one that anyone has been told of, is committed: this node led a moment ago, and
// a quorum has confirmed since that it still does.
func (n *Node) ownReadIndex(ctx context.Context) (readIndex, error) {
	o := n.office.Load()
	if o == nil {
		return readIndex{}, errOutOfOffice
	}
	index, err := o.reads.index(ctx)
	return readIndex{index: index, now: o.now()}, err
}

// verifyLeader has a quorum confirm that this node leads. Raft never answers who asks in
// the moment in which it shuts down: Close waits for those who do, and lets no more.
func (n *Node) verifyLeader() error {
	n.mu.Lock()
	if n.stopped {
		n.mu.Unlock()
		return ErrClosed
	}
	n.verifying.Add(1)
	n.mu.Unlock()
	defer n.verifying.Done()
	return n.raft.VerifyLeader().Error()
}

// committed is the index of the last entry for the table that is committed, as Raft
// knows here. The table itself may be behind: a follower that has applied an entry may
// have told its client of a grant before its leader has applied the same.
func (n *Node) committed() (uint64, error) {
	return lastCommand(n.entries, n.replica.appliedIndex(), n.raft.CommitIndex())
}

// lastCommand is the index of the last entry for the table up to commit; that at applied
// is one. Raft's own entries never reach the table, so nobody can wait for them.
func lastCommand(log raft.LogStore, applied, commit uint64) (uint64, error) {
	for i := commit; i > applied; i-- {
		var l raft.Log
		if err := log.GetLog(i, &l); err != nil {
			return 0, fmt.Errorf("read log entry %d: %w", i, err)
		}
		if l.Type == raft.LogCommand {
			return i, nil
		}
	}
	return applied, nil
}

// readIndex is what a linearizable read goes by, and replicated time as the leader
// counts it: the log's own stamps stand still while nothing happens.
type readIndex struct {
	index uint64
	now   fsm.Millis
}

// reads lets all readers that come while a leadership check is under way share
// the next one.
type reads struct {
	committed func() (uint64, error)
	verify    func() error
	run       func(func()) // starts a goroutine

	mu      sync.Mutex
	waiting []chan vouched
	running bool
}

type vouched struct {
	index uint64
	err   error
}

func (r *reads) index(ctx context.Context) (uint64, error) {
	ch := make(chan vouched, 1)
	r.mu.Lock()
	r.waiting = append(r.waiting, ch)
	if !r.running {
		r.running = true
		r.run(r.serve)
	}
	r.mu.Unlock()
	select {
	case got := <-ch:
		return got.index, got.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// serve answers until no reader waits. It ends by itself: verify does not
// outlast Raft.
func (r *reads) serve() {
	for {
		r.mu.Lock()
		batch := r.waiting
		r.waiting = nil
		if len(batch) == 0 {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		var got vouched
		got.index, got.err = r.committed()
		if err := r.verify(); err != nil {
			got.err = fmt.Errorf("%w: %w", errOutOfOffice, err)
		}
		for _, ch := range batch {
			ch <- got
		}
	}
}
