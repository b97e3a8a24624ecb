package executor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// The actions of an [Executor].
const (
	// ActionCheckpoint writes a job to a file. See [CheckpointSpec].
	ActionCheckpoint = "checkpoint"
	// ActionRestart starts it again. See [RestartSpec].
	ActionRestart = "restart"
)

// CheckpointSpec says what is checkpointed. One of PID and Lock is set.
type CheckpointSpec struct {
	PID  int    `json:"pid,omitempty"`  // with all its descendants
	Lock string `json:"lock,omitempty"` // the job of its only holder
	File string `json:"file"`
	// After says what becomes of the processes: "run", the default, "stop" or "kill".
	After string `json:"after,omitempty"`
	// Suspend has the table keep the lock for the job. It is killed then.
	Suspend bool `json:"suspend,omitempty"`
	Zstd    bool `json:"zstd,omitempty"`
}

// RestartSpec says what is restarted.
type RestartSpec struct {
	File string `json:"file"`
	// Lock is the name that the job's suspended lock has to have; "" takes whatever lock was
	// suspended with it, or none.
	Lock string `json:"lock,omitempty"`
	// NewPIDs lets the job live in a pid namespace of its own.
	NewPIDs     bool                    `json:"new_pids,omitempty"`
	Relocations []checkpoint.Relocation `json:"relocate,omitempty"`
	// Trust is for a file that another user than root could have written.
	Trust bool `json:"trust,omitempty"`
}

// Hold is a hold in the lock table.
type Hold struct {
	Fence     uint64
	Locks     []string
	Owner     string
	Mode      string
	Host      string
	PID       int
	Start     uint64 // clock ticks since boot; 0 if not known
	Here      bool   // the process is one of this host, and PID its number here
	Over      bool   // it is of an earlier boot of this host
	Suspended bool
	By        string // who has suspended it
	Context   string // where its job is, then
	ContextID string // of the file there
	Job       uint64 // under which fence it was put there
	Ended     bool   // the job is known to have ended
	Resumed   bool   // it was suspended, and the process is not known to have been let run
}

// Locks is the lock table.
type Locks interface {
	// Holds returns the holds of a lock, or, of "", those of this host's processes.
	Holds(ctx context.Context, lock string) ([]Hold, error)
	// Suspend has the table keep a hold for a job in a file. It may be repeated.
	Suspend(ctx context.Context, fence uint64, file, id string) error
	// Ended says that the job of a suspended hold does not run any more; Resume refuses it
	// before. What Suspend was not asked for by this task has to be a hold of Holds.
	Ended(ctx context.Context, h Hold) error
	// Resume gives it to a process of this host, which was restored from the file with the
	// id, and returns the new fence.
	Resume(ctx context.Context, fence uint64, id string, pid int) (uint64, error)
	// Runs says that the process was let run. If it ends before, the hold is suspended again.
	Runs(ctx context.Context, fence uint64, pid int) error
	// Refused says whether an error of those above is the table's answer, and not the
	// lack of one.
	Refused(error) bool
}

// Executor carries out orders.
type Executor struct {
	records string   // see note
	left    []string // those of earlier ones
	log     func(text string, args ...any)
	work    sync.WaitGroup
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
}

// New makes one. In the directory records, which is made when it is needed, it leaves word
// of what it has begun for the next one there; "" is for none. log gets what nobody waits
// for, with names and values in turn.
func New(records string, log func(text string, args ...any)) *Executor {
	if log == nil {
		log = func(string, ...any) {}
	}
	x := &Executor{records: records, log: log}
	if records != "" {
		x.left = noted(records)
	}
	x.ctx, x.stop = context.WithCancel(context.Background())
	return x
}

// Close waits for what is under way. Jobs that were restarted live on.
func (x *Executor) Close() error {
	x.stop()
	x.work.Wait()
	return nil
}

// Prepare finds out what can be refused. Nothing has happened after it.
func (x *Executor) Prepare(ctx context.Context, order uint64, action string, spec []byte, locks Locks) (*Prepared, error) {
	p := &Prepared{done: make(chan struct{})}
	var err error
	switch action {
	case ActionCheckpoint:
		var s CheckpointSpec
		if err = read(spec, &s); err == nil {
			p.run, err = x.save(ctx, order, s, locks)
		}
	case ActionRestart:
		var s RestartSpec
		if err = read(spec, &s); err == nil {
			p.run, err = x.revive(ctx, order, s, locks)
		}
	default:
		err = fmt.Errorf("there is no action %q", action)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// maxSpec bounds a spec, in bytes.
const maxSpec = 8 << 10

func read(text []byte, spec any) error {
	if len(text) > maxSpec {
		return fmt.Errorf("the spec is longer than %d bytes", maxSpec)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(spec); err != nil {
		return fmt.Errorf("read the spec: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("read the spec: something stands behind it")
	}
	return nil
}

func checkFile(path string) error {
	switch {
	case path == "":
		return errors.New("which file? its name is missing")
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return fmt.Errorf("%q: it is a file on the node: write its whole name from / on", path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q: the name has control characters", path)
	}
	return nil
}

// Prepared is an order that can be carried out. There is nothing to undo afterwards; it
// counts as undone when somebody has asked for that.
type Prepared struct {
	run  func(ctx context.Context) (text string, err error)
	once sync.Once
	done chan struct{}
}

// Freeze carries it out. At the end of ctx it gives up; after an error all is as it was,
// but where the error says otherwise.
func (p *Prepared) Freeze(ctx context.Context) (text string, err error) { return p.run(ctx) }

// Renew does nothing: what is under way depends on Freeze's context.
func (p *Prepared) Renew() {}

// Thaw ends the order.
func (p *Prepared) Thaw() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Done is closed by Thaw.
func (p *Prepared) Done() <-chan struct{} { return p.done }

// Err is nil.
func (p *Prepared) Err() error { return nil }

// Cause is that of Thaw.
func (p *Prepared) Cause() string { return "asked" }
