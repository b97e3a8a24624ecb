package db

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTail reads streams as a server may end them, and events with any number in them. One
// whose time was out of bounds used to end the stream, again and again, and the checks were
// blind to a server with such a clock.
func TestTail(t *testing.T) {
	const one, two = `{"kind":"granted","fence":1,"at_ms":18446744073699551616}`, `{"kind":"granted","fence":2}`
	tests := map[string]struct {
		stream string
		want   []uint64
		fails  bool
	}{
		"whole":           {one + "\n\n" + two + "\n", []uint64{1, 2}, false},
		"cut in a line":   {one + "\n" + two[:20], []uint64{1}, false},
		"ended":           {one + "\n" + `{"error":"it stops"}` + "\n", []uint64{1}, false},
		"makes no sense":  {one + "\n" + `{"kind":"granted","fence":-2}` + "\n" + two + "\n", []uint64{1}, true},
		"another's field": {`{"kind":"order-opened","order":1,"nodes":["a"],"at_ms":3}` + "\n" + two + "\n", []uint64{0, 2}, false},
	}
	for name, tt := range tests {
		tail := &Tail{stop: func() {}, live: map[string]bool{}}
		tail.read(strings.NewReader(tt.stream), "n1", func() time.Duration { return time.Second })
		events, err := tail.Stop()
		var got []uint64
		for _, e := range events {
			got = append(got, e.Fence)
		}
		if !slices.Equal(got, tt.want) || (err != nil) != tt.fails {
			t.Errorf("%s: fences %v, %v; want %v, an error: %v", name, got, err, tt.want, tt.fails)
		}
	}
}
