package pidprobe

import (
	"bytes"
	"hash/fnv"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A birth tells one process from others that have had its number, between a server
// and those who ask it: its start in ticks, and where ticks and numbers count so.
//
//	1195000.9f3c21aa
//
// Whoever asks gives it back as it is. A server takes another start for evidence
// only from where it runs itself: in another time namespace (time_namespaces(7))
// the same process has another start.

// maxBirth is the longest birth.
const maxBirth = 20 + 1 + 8

// birth is empty if it is not known for certain.
func (p Process) birth() string {
	if p.Start == 0 || birthplace() == "" {
		return ""
	}
	return strconv.FormatUint(p.Start, 10) + birthplace()
}

// bornAnew says whether a birth is certainly that of an earlier process with the
// number of p.
func (p Process) bornAnew(birth []byte) bool {
	place := birthplace()
	ticks, ok := bytes.CutSuffix(birth, []byte(place))
	if !ok || place == "" || len(birth) > maxBirth || p.Start == 0 {
		return false
	}
	start, err := strconv.ParseUint(string(ticks), 10, 64)
	return err == nil && start != 0 && start != p.Start
}

// birthplace is the end of births here; empty if it cannot be told.
var birthplace = sync.OnceValue(func() string {
	var ns unix.Stat_t
	here := Here()
	if here == "" {
		return ""
	}
	// A kernel without time namespaces has none to be in another of.
	if unix.Stat("/proc/self/ns/time", &ns) == nil {
		here += "/" + strconv.FormatUint(ns.Ino, 10)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(here))
	const hex = 16
	sum := strconv.FormatUint(1<<32|uint64(h.Sum32()), hex) // keeps leading zeros
	return "." + sum[1:]
})
