package check

import (
	"fmt"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

// Verdict is what a check says.
type Verdict string

const (
	Pass      Verdict = "pass"
	Fail      Verdict = "fail"
	Undecided Verdict = "undecided"
)

// Result is the outcome of one check.
type Result struct {
	Check    string   `json:"check"`
	Verdict  Verdict  `json:"verdict"`
	Looked   int      `json:"looked"` // at how many things; a check that saw none passes nothing
	Problems []string `json:"problems,omitempty"`
	More     int      `json:"more,omitempty"`  // problems beyond those listed
	First    int      `json:"first,omitempty"` // index of the operation at fault, for pictures
}

// maxProblems are listed; the others are counted.
const maxProblems = 5

func (r *Result) problem(index int, format string, args ...any) {
	r.Verdict = Fail
	if len(r.Problems) >= maxProblems {
		r.More++
		return
	}
	if r.First == 0 {
		r.First = index
	}
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// Input is a run as it was recorded.
type Input struct {
	Ops    []history.Op
	Events []history.Event
	End    End
}

// End is what was found after everything had been healed and all clients had
// stopped.
type End struct {
	Workload string        `json:"workload"`
	Loses    bool          `json:"loses,omitempty"` // holds may end without their owners' doing
	Guard    bool          `json:"guard,omitempty"`
	Hasten   float64       `json:"hasten,omitempty"`  // servers' clocks ran up to so much faster than ours; 0 is 1
	Nemesis  bool          `json:"nemesis,omitempty"` // faults were asked for
	Healed   time.Duration `json:"healed"`            // when the last fault was healed
	Recover  time.Duration `json:"recover"`           // from then until all nodes served; 0 = never
	Fence    uint64        `json:"fence"`             // the last one given out
	Kept     []string      `json:"kept,omitempty"`    // users that hold or wait though they are gone
	Digests  []Digest      `json:"digests,omitempty"`
	Set      []int         `json:"set,omitempty"`   // in the register
	Ended    []string      `json:"ended,omitempty"` // processes that ended by themselves
	Logs     []string      `json:"logs,omitempty"`  // lines of panics and races
	Growth   []Growth      `json:"growth,omitempty"`
	Installs int           `json:"snapshot_installs,omitempty"`
	Agree    bool          `json:"agree"` // the digests were compared at one index
}

// least is the shortest time that a span of the servers' clocks may take.
func (e End) least(span time.Duration) time.Duration {
	return time.Duration(float64(span) / max(e.Hasten, 1))
}

// Digest is a node's table at a place in the log.
type Digest struct {
	Node   string `json:"node"`
	Index  uint64 `json:"index"`
	Digest string `json:"digest"`
}

// purpose says which operations a workload is there for; nil if it is for all of them.
func purpose(workload string) func(history.Op) bool {
	switch workload {
	case "set", "fenced":
		return func(op history.Op) bool { return op.F == history.Write && op.Type == history.OK }
	case "autounlock", "faraway":
		return func(op history.Op) bool { return op.F == history.Death }
	case "break":
		return func(op history.Op) bool { return op.F == history.Break && op.Type == history.OK }
	case "freeze":
		return func(op history.Op) bool { return op.F == history.Frozen }
	case "timeout":
		return func(op history.Op) bool { return op.F == history.Lost }
	}
	return nil
}

// work sees to it that what the workload is for has happened at all.
func work(in Input) Result {
	return Result{Verdict: Pass, Looked: worked(in.End.Workload, in.Ops)}
}

// Worked says whether a workload has done what it is for.
func Worked(workload string, ops []history.Op) bool {
	return purpose(workload) == nil || worked(workload, ops) > 0
}

func worked(workload string, ops []history.Op) (n int) {
	is := purpose(workload)
	for _, op := range ops {
		if is(op) {
			n++
		}
	}
	return n
}

// Overall is fail if any check failed, else undecided if any is.
func Overall(results []Result) Verdict {
	v := Pass
	for _, r := range results {
		if r.Verdict == Fail {
			return Fail
		}
		if r.Verdict == Undecided {
			v = Undecided
		}
	}
	return v
}
