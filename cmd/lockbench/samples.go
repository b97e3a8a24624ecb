package main

import (
	"encoding/json"
	"math"
	"slices"
	"time"
)

// samples are durations measured, in any order.
type samples []time.Duration

// maxSamples bounds what one run records, over all clients: 8 bytes each.
const maxSamples = 20_000_000

// quantile is the smallest sample that at least the share q of them, 0 to 1, does
// not exceed: the nearest rank. Of none it is 0. The samples must be sorted.
func (s samples) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(s))))
	return s[min(max(rank, 1), len(s))-1]
}

// spread sums up samples.
type spread struct {
	Count int    `json:"count"`
	P50   millis `json:"p50_ms"`
	P99   millis `json:"p99_ms"`
	Worst millis `json:"worst_ms"`
}

func (s samples) spread() spread {
	slices.Sort(s)
	return spread{len(s), millis(s.quantile(0.5)), millis(s.quantile(0.99)), millis(s.quantile(1))}
}

func (s spread) cells() []any { return []any{s.P50, s.P99, s.Worst} }

// millis is a duration that is shown in milliseconds.
type millis time.Duration

func (m millis) float() float64 {
	return math.Round(time.Duration(m).Seconds()*1e6) / 1e3
}

func (m millis) MarshalJSON() ([]byte, error) { return json.Marshal(m.float()) }

// rate is per second, rounded to what can be measured.
func rate(n int, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	r := float64(n) / d.Seconds()
	if r >= 100 {
		return math.Round(r)
	}
	return math.Round(r*10) / 10
}
