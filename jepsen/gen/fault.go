package gen

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Fault is one entry of a schedule.
type Fault struct {
	At   time.Duration `json:"at"`  // since the workload began
	For  time.Duration `json:"for"` // until it is healed
	Kind string        `json:"kind"`
	Seed uint64        `json:"seed"` // for its own choices
}

// Rhythm is the pace of a schedule: each fault lasts, and is followed by a pause,
// of a length between Shortest and Longest.
type Rhythm struct {
	Shortest      time.Duration `json:"shortest"`
	Longest       time.Duration `json:"longest"`
	ShortestPause time.Duration `json:"shortest_pause"`
	LongestPause  time.Duration `json:"longest_pause"`
	// Whole lets every kind come up at least once, in shorter faults and pauses if
	// there is not the time for others.
	Whole bool `json:"whole,omitempty"`
}

// within shortens the rhythm so that n faults fit into total.
func (r Rhythm) within(total time.Duration, n int) Rhythm {
	need := time.Duration(n)*(r.Longest+r.LongestPause) + r.LongestPause
	if !r.Whole || need <= total {
		return r
	}
	share := float64(total) / float64(need)
	for _, d := range []*time.Duration{&r.Shortest, &r.Longest, &r.ShortestPause, &r.LongestPause} {
		*d = time.Duration(float64(*d) * share)
	}
	return r
}

// DefaultRhythm has a fault about every five seconds. A cluster needs up to two of
// them to elect after a host has vanished, so the longest faults see an election,
// and the longest pauses a cluster that works.
var DefaultRhythm = Rhythm{
	Shortest: 300 * time.Millisecond, Longest: 5 * time.Second,
	ShortestPause: 500 * time.Millisecond, LongestPause: 4 * time.Second,
}

// Brisk is for short runs: a fault about every three seconds.
var Brisk = Rhythm{
	Shortest: 300 * time.Millisecond, Longest: 3 * time.Second,
	ShortestPause: 500 * time.Millisecond, LongestPause: 2 * time.Second,
	Whole: true,
}

// Schedule spreads faults of the kinds over total, one after the other. All kinds
// come up before one comes up again.
func Schedule(seed uint64, kinds []string, total time.Duration, r Rhythm) []Fault {
	if len(kinds) == 0 {
		return nil
	}
	rng := rand.New(rand.NewPCG(seed, 0xfa))
	r = r.within(total, len(kinds))
	var faults []Fault
	var deck []string
	for at := between(rng, r.ShortestPause, r.LongestPause); ; {
		if len(deck) == 0 {
			deck = slices.Clone(kinds)
			rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := Fault{At: at, For: between(rng, r.Shortest, r.Longest), Kind: deck[0], Seed: rng.Uint64()}
		deck = deck[1:]
		if f.At+f.For >= total {
			return faults
		}
		faults = append(faults, f)
		at += f.For + between(rng, r.ShortestPause, r.LongestPause)
	}
}

func between(rng *rand.Rand, a, b time.Duration) time.Duration {
	if b <= a {
		return a
	}
	return a + time.Duration(rng.Int64N(int64(b-a)))
}
