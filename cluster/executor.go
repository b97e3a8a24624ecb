package cluster

import (
	"context"
	"time"
)

// Executor carries out orders on this host: freezer's does. Its methods may be called
// from several goroutines.
type Executor interface {
	// Prepare gets ready to carry out an order: after it nothing is frozen yet, and all
	// that can be refused has been, in one line that says why. ctx ends when the order does.
	Prepare(ctx context.Context, t Task) (Prepared, error)

	// Close is called when nothing is held any more.
	Close() error
}

// Recoverer is an Executor that has something to bring to an end that was under way when
// this node ended. Recover is called once, when the node is open; ctx ends with the node.
type Recoverer interface {
	Recover(ctx context.Context, locks *TaskLocks)
}

// Task is what an order has one node do.
type Task struct {
	Order   uint64
	Action  string        // freeze, fsfreeze, checkpoint or restart
	Spec    []byte        // JSON, which the executor alone reads
	Timeout time.Duration // from Freeze on; negative: none
	Lease   time.Duration // how long it stays frozen without a Renew, whatever this process does
	By      string        // who asked, for logs
	Locks   *TaskLocks    // the lock table, for tasks that have to do with locks
}

// Prepared is a task that is ready to be carried out. One that is never frozen is
// thawed too.
type Prepared interface {
	// Freeze carries it out. The text is for people, such as "12 processes". After an
	// error nothing is frozen.
	Freeze(ctx context.Context) (text string, err error)

	// Renew says that the leader has been met. It does not wait, and may be called at any
	// time.
	Renew()

	// Thaw undoes it, and returns when it is undone. It may be called at any time,
	// and again.
	Thaw() error

	// Done is closed when it is undone, or has failed to freeze, whoever did it: after
	// Thaw, at its deadline, because its lease has run out, or because its guard was lost.
	Done() <-chan struct{}

	// Err is nil until Done is closed; then it may say more than Cause.
	Err() error

	// Cause says, once Done is closed, why: "asked", "deadline", "quorum" if it was the
	// lease, "guard" if that was lost, "local" if somebody has thawed on the host itself,
	// or "failed", of which Err says more.
	Cause() string
}
