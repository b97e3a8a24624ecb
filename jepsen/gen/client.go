package gen

import (
	"math/rand/v2"
	"time"
)

// Action is what a client does next.
type Action struct {
	Locks []int         // which, by number
	Try   bool          // without waiting
	Read  bool          // only look who holds the lock
	Hold  time.Duration // how long to keep it
	Pause time.Duration // before the action
	Roll  float64       // in [0, 1), for choices of the workload
}

// Mix says of what a stream of actions is made.
type Mix struct {
	Locks int           // how many there are
	Names int           // how many an action names at most
	Try   float64       // share of actions
	Read  float64       // share of actions
	Hold  time.Duration // mean
	Pause time.Duration // mean
}

// Stream is the sequence of a client's actions.
type Stream struct {
	rng *rand.Rand
	mix Mix
}

// NewStream makes the stream of one client of a run.
func NewStream(seed uint64, client int, m Mix) *Stream {
	return &Stream{rng: rand.New(rand.NewPCG(seed, 0xc0ffee+uint64(client))), mix: m}
}

// Next is the next action. It always draws the same number of times for one mix,
// so that what became of an action does not change those after it.
func (s *Stream) Next() Action {
	m := s.mix
	a := Action{
		Pause: s.about(m.Pause), Hold: s.about(m.Hold), Roll: s.rng.Float64(),
		Try: s.rng.Float64() < m.Try, Read: s.rng.Float64() < m.Read,
	}
	n := 1
	if m.Names > 1 {
		n = 1 + s.rng.IntN(min(m.Names, m.Locks))
	}
	a.Locks = s.rng.Perm(m.Locks)[:n]
	return a
}

// about is exponentially distributed, and at most five times the mean.
func (s *Stream) about(mean time.Duration) time.Duration {
	return time.Duration(min(s.rng.ExpFloat64(), 5) * float64(mean))
}
