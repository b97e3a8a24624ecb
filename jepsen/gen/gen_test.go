package gen

import (
	"reflect"
	"testing"
	"time"
)

func TestScheduleIsTheSeeds(t *testing.T) {
	kinds := []string{"kill", "pause", "partition"}
	a := Schedule(7, kinds, time.Minute, DefaultRhythm)
	if b := Schedule(7, kinds, time.Minute, DefaultRhythm); !reflect.DeepEqual(a, b) {
		t.Errorf("one seed, two schedules: %v and %v", a, b)
	}
	if b := Schedule(8, kinds, time.Minute, DefaultRhythm); reflect.DeepEqual(a, b) {
		t.Error("two seeds, one schedule")
	}
	if len(a) < 6 {
		t.Fatalf("only %d faults in a minute", len(a))
	}
	seen := map[string]bool{}
	var end time.Duration
	for i, f := range a {
		if f.At < end || f.At+f.For >= time.Minute {
			t.Errorf("fault %d at %v for %v is out of order or too late", i, f.At, f.For)
		}
		end = f.At + f.For
		seen[f.Kind] = true
		if i == len(kinds)-1 && len(seen) != len(kinds) {
			t.Errorf("the first %d faults are of the kinds %v only", len(kinds), seen)
		}
	}
}

func TestABriefRunHasAllKinds(t *testing.T) {
	kinds := []string{"kill", "pause", "partition"}
	for seed := range uint64(1000) {
		seen := map[string]bool{}
		for _, f := range Schedule(seed, kinds, 7*time.Second, Brisk) {
			seen[f.Kind] = true
		}
		if len(seen) != len(kinds) {
			t.Fatalf("seed %d: only %v", seed, seen)
		}
	}
}

func TestNoKindsNoFaults(t *testing.T) {
	if f := Schedule(1, nil, time.Minute, DefaultRhythm); f != nil {
		t.Errorf("got %v", f)
	}
}

func TestStreamIsTheSeeds(t *testing.T) {
	m := Mix{Locks: 5, Names: 3, Try: 0.3, Read: 0.1, Hold: time.Millisecond, Pause: time.Millisecond}
	a, b, other := NewStream(1, 2, m), NewStream(1, 2, m), NewStream(1, 3, m)
	differ := false
	for range 100 {
		x, y, z := a.Next(), b.Next(), other.Next()
		if !reflect.DeepEqual(x, y) {
			t.Fatalf("one seed, two actions: %+v and %+v", x, y)
		}
		differ = differ || !reflect.DeepEqual(x, z)
		if len(x.Locks) == 0 || len(x.Locks) > 3 || x.Hold > 5*m.Hold {
			t.Errorf("out of bounds: %+v", x)
		}
	}
	if !differ {
		t.Error("two clients do the same")
	}
}
