package history

import "time"

// Type says which end of an operation an Op is, and how it ended.
type Type string

const (
	Invoke Type = "invoke"
	OK     Type = "ok"   // the cluster said so
	Fail   Type = "fail" // certainly without effect
	Info   Type = "info" // nobody knows, or nobody needs to
)

// What clients do.
const (
	Acquire = "acquire"
	Release = "release"
	Break   = "break"
	Read    = "read"  // who holds Locks[0]
	Lost    = "lost"  // news that a hold has ended; Value is the cause
	Write   = "write" // of the protected register, outside of the cluster
	Queued  = "queued"
	Death   = "death" // of the process that owned a hold

	Stopped   = "stopped" // the process that owns a hold
	Continued = "continued"
)

// Busy is the Error of an Acquire that was told so, and Unsent of one that has
// certainly reached no server.
const (
	Busy   = "busy"
	Unsent = "unsent"
)

// What clients do who freeze. Locks are then the targets, as in fs:n1.
const (
	Freeze = "freeze" // from the order to its end; Limit is its time, Value why it ended
	Frozen = "frozen" // news that all of it is
	Thaw   = "thaw"   // the client begins to end it
	Probe  = "probe"  // Took is the time from a question to a target until its answer

	GuardKilled = "guardkill" // note of the nemesis
)

// Control is a target of probes that nobody freezes.
const Control = "control"

// Reuse is the note of the nemesis that a dead process's number was given to another.
const Reuse = "pidreuse"

// Nemesis is the process that injects faults.
const Nemesis = -1

// Op is one line of a history. Not every field means something for every F.
type Op struct {
	Index   int           `json:"index"`
	Time    time.Duration `json:"time"` // since the run began, monotonic
	Process int           `json:"process"`
	Type    Type          `json:"type"`
	F       string        `json:"f"`

	Locks []string      `json:"locks,omitempty"`
	Owner string        `json:"owner,omitempty"`
	Fence uint64        `json:"fence,omitempty"`
	Try   bool          `json:"try,omitempty"`   // Acquire did not want to wait
	Mode  string        `json:"mode,omitempty"`  // of Acquire: exclusive (empty), shared or slots
	Slots int           `json:"slots,omitempty"` // with mode slots
	All   bool          `json:"all,omitempty"`   // Acquire wanted all of Locks
	Limit time.Duration `json:"limit,omitempty"` // the hold may end so long after it was asked for
	Lease time.Duration `json:"lease,omitempty"` // the hold may end when its owner is silent for so long
	Proto int           `json:"proto,omitempty"` // of a client that speaks it itself; 1 has no fences
	Order uint64        `json:"order,omitempty"`
	Took  time.Duration `json:"took,omitempty"`
	Value string        `json:"value,omitempty"`
	Node  string        `json:"node,omitempty"`
	Error string        `json:"error,omitempty"`
}

// Pair is an operation from its call to its return.
type Pair struct {
	Call   Op
	Return Op
	Done   bool // Return is there; without it the outcome is unknown
}

// Type is how the operation ended.
func (p Pair) Type() Type {
	if !p.Done {
		return Info
	}
	return p.Return.Type
}

// Forever is later than any time of a history.
const Forever = time.Duration(1<<63 - 1)

// End is when the operation certainly had taken effect, if it ever did.
func (p Pair) End() time.Duration {
	if p.Type() == Info {
		return Forever
	}
	return p.Return.Time
}

// Pairs matches calls with returns, in the order of the calls. A process has one
// operation under way at a time. Notes (Lost, Queued, Death, all of the nemesis)
// are no calls and are left out.
func Pairs(ops []Op) []Pair {
	var pairs []Pair
	open := map[int]int{}
	for _, op := range ops {
		if op.Process == Nemesis {
			continue
		}
		if op.Type == Invoke {
			open[op.Process] = len(pairs)
			pairs = append(pairs, Pair{Call: op})
			continue
		}
		i, ok := open[op.Process]
		if !ok || pairs[i].Call.F != op.F {
			continue
		}
		pairs[i].Return, pairs[i].Done = op, true
		delete(open, op.Process)
	}
	return pairs
}
