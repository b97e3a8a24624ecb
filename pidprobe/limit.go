package pidprobe

import (
	"hash/maphash"
	"sync"
	"time"
)

const (
	limitSets = 1024 // a power of two
	limitWays = 4
)

// limiter bounds the answers per second, in total and to each source address, by
// token buckets a tenth of a second deep. It remembers a fixed number of sources;
// an address that has been silent longer gives way, and begins anew with a full
// bucket. (Addresses of datagrams can be made up, so that the total is the bound
// that holds.)
type limiter struct {
	rate, sourceRate float64 // answers a second, 0 for any

	mu      sync.Mutex
	seed    maphash.Seed
	total   bucket
	sources [limitSets][limitWays]limitSource
}

type limitSource struct {
	address sourceKey
	bucket
}

// sourceKey is an IPv4 address, or the network part of an IPv6 one: within that
// a host may choose as it likes.
type sourceKey [8]byte

// bucket had so many tokens at a time. Its zero value is full.
type bucket struct {
	tokens float64
	at     time.Duration
}

func newLimiter(rate, sourceRate int) *limiter {
	return &limiter{rate: float64(rate), sourceRate: float64(sourceRate), seed: maphash.MakeSeed()}
}

// allow says for each of a batch of questions whether it may be answered. now is
// the time since any fixed moment at least a second ago.
func (l *limiter) allow(now time.Duration, from []sourceKey, ok []bool) {
	if l.rate <= 0 && l.sourceRate <= 0 {
		for i := range ok {
			ok[i] = true
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, key := range from {
		ok[i] = (l.sourceRate <= 0 || l.source(key).take(now, l.sourceRate)) &&
			(l.rate <= 0 || l.total.take(now, l.rate))
	}
}

// source finds the bucket of an address.
func (l *limiter) source(key sourceKey) *bucket {
	set := &l.sources[maphash.Bytes(l.seed, key[:])&(limitSets-1)]
	oldest := &set[0]
	for i := range set {
		s := &set[i]
		if s.address == key {
			return &s.bucket
		}
		if s.at < oldest.at {
			oldest = s
		}
	}
	*oldest = limitSource{address: key}
	return &oldest.bucket
}

func (b *bucket) take(now time.Duration, rate float64) bool {
	depth := max(rate/10, 64)
	b.tokens = min(depth, b.tokens+(now-b.at).Seconds()*rate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
