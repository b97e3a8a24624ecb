package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// maxEntry bounds a log entry, so that one entry never holds up a heartbeat's
	// worth of followers' disks and a snapshot policy by bytes stays meaningful.
	maxEntry = 64 << 10

	// maxBatch bounds the commands of one entry; the table's decoder has the same bound.
	maxBatch = 4096

	// pipelined is how many entries may be on their way to disk at once. One more
	// than one lets the next batch form while Raft hands the last one over; more
	// would only split the batches.
	pipelined = 2
)

// errOutOfOffice is returned to those who propose to a node that does not lead.
var errOutOfOffice = errors.New("this node does not lead")

// proposal is a command in the leader's queue.
type proposal struct {
	p    fsm.Proposal
	size int
	done func(fsm.Result, error) // called once; must not block
}

// veto says why a command can't be taken at present, "" if it can, and whether
// the next leader will take it soon.
type veto func(fsm.Command) (reason string, soon bool)

// office is one term of this node as leader, from the moment its own first entry
// has been applied. It turns whatever has queued up while the last entry was on
// its way into the next one: throughput comes from that, not from threads.
type office struct {
	raft *raft.Raft
	term uint64
	base fsm.Millis // the table's time when the office was taken
	from time.Time  // when that was, on the monotonic clock

	refuse veto
	reads  *reads
	askers askers

	mu     sync.Mutex
	queue  []proposal
	closed bool
	wake   chan struct{} // holds a token while the queue may have something in it
}

func newOffice(r *raft.Raft, term uint64, base fsm.Millis) *office {
	return &office{
		raft:   r,
		term:   term,
		base:   base,
		from:   time.Now(),
		refuse: func(fsm.Command) (string, bool) { return "", false },
		wake:   make(chan struct{}, 1),
	}
}

// now is replicated time, as far as this leader has counted it.
func (o *office) now() fsm.Millis {
	return o.base + fsm.Millis(time.Since(o.from)/time.Millisecond)
}

// propose queues a command. done hears what became of it, on another goroutine: a
// result once it is committed and applied, or an error, in which case that is not
// known.
func (o *office) propose(p fsm.Proposal, done func(fsm.Result, error)) {
	// What the table's decoder would not read must never get into the log: every
	// server would stop at it.
	why, soon := o.refuse(p.Command)
	if err := fsm.Validate(p.Command); err != nil {
		why, soon = err.Error(), false
	}
	switch {
	case soon:
		go done(fsm.Result{}, errOutOfOffice)
		return
	case why != "":
		go done(fsm.Result{Code: fsm.Refused, Reason: why}, nil)
		return
	}
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		go done(fsm.Result{}, errOutOfOffice)
		return
	}
	o.queue = append(o.queue, proposal{p: p, size: proposalSize(p), done: done})
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// do proposes a command of the leader's own and waits for its result.
func (o *office) do(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	type answer struct {
		res fsm.Result
		err error
	}
	ch := make(chan answer, 1)
	o.propose(fsm.Proposal{Command: c}, func(res fsm.Result, err error) { ch <- answer{res, err} })
	select {
	case a := <-ch:
		return a.res, a.err
	case <-ctx.Done():
		return fsm.Result{}, context.Cause(ctx)
	}
}

// take removes the next batch from the queue.
func (o *office) take() []proposal {
	o.mu.Lock()
	defer o.mu.Unlock()
	size, n := 0, 0
	for n < len(o.queue) && n < maxBatch && (n == 0 || size+o.queue[n].size <= maxEntry) {
		size += o.queue[n].size
		n++
	}
	batch := o.queue[:n:n]
	o.queue = o.queue[n:]
	if len(o.queue) == 0 {
		o.queue = nil
	}
	return batch
}

// flight is an entry on its way.
type flight struct {
	batch  []proposal
	future raft.ApplyFuture
}

// run proposes batches until ctx ends, then turns away whatever is queued.
func (o *office) run(ctx context.Context) {
	slots := make(chan struct{}, pipelined)
	flights := make(chan flight, pipelined)
	var landing sync.WaitGroup
	landing.Go(func() {
		for f := range flights {
			f.land()
			<-slots
		}
	})
	defer func() {
		close(flights)
		o.close()
		landing.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		}
		for {
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
			}
			// What has queued up is taken only now, with a slot in hand: the longer
			// the disk takes, the fuller the batch.
			batch := o.take()
			if len(batch) == 0 {
				<-slots
				break
			}
			e := fsm.Entry{Now: o.now(), Proposals: make([]fsm.Proposal, len(batch))}
			for i := range batch {
				e.Proposals[i] = batch[i].p
			}
			flights <- flight{batch: batch, future: o.raft.Apply(fsm.AppendEntry(nil, e), 0)}
		}
	}
}

// land waits for an entry and answers its commands.
func (f flight) land() {
	err := f.future.Error()
	var outcome fsm.Outcome
	if err == nil {
		switch r := f.future.Response().(type) {
		case fsm.Outcome:
			outcome = r
		case error:
			err = r
		}
	}
	if err == nil && len(outcome.Results) != len(f.batch) {
		err = errors.New("the table answered another number of commands than it was given")
	}
	for i, p := range f.batch {
		if err != nil {
			p.done(fsm.Result{}, err)
		} else {
			p.done(outcome.Results[i], nil)
		}
	}
}

// close turns away what is queued and whatever comes later.
func (o *office) close() {
	o.mu.Lock()
	queue := o.queue
	o.queue, o.closed = nil, true
	o.mu.Unlock()
	for _, p := range queue {
		p.done(fsm.Result{}, errOutOfOffice)
	}
}

// proposalSize is an upper bound of a command's encoded size in bytes, or close
// to one; the log's decoder allows an entry some slack.
func proposalSize(p fsm.Proposal) int {
	const fixed = 112 // numbers, flags and lengths
	size := fixed
	switch c := p.Command.(type) {
	case fsm.Acquire:
		size += len(c.Owner) + len(c.Process.Host) + len(c.Process.Boot) + namesSize(c.Locks)
	case fsm.Release:
		size += len(c.Owner) + namesSize(c.Locks)
	case fsm.Break:
		size += len(c.By) + namesSize(c.Locks)
	case fsm.ProcessGone:
		size += len(c.Process.Host) + len(c.Process.Boot) + 10*(len(c.Fences)+len(c.Tickets))
	case fsm.Renew:
		size += len(c.Owner)
	case fsm.NodeJoin:
		size += len(c.Name)
	case fsm.RemoveServer:
		size += len(c.ID) + len(c.Name) + len(c.Addr)
	case fsm.OrderOpen:
		size += len(c.By) + len(c.Action) + len(c.Spec) + namesSize(c.Nodes)
	case fsm.OrderReport:
		size += len(c.Text)
	case fsm.OrderEnd:
		size += len(c.By)
	}
	return size
}

func namesSize(names []string) int {
	size := 0
	for _, n := range names {
		size += len(n) + 2
	}
	return size
}
