package overlay

import (
	"bytes"
	"fmt"
	"os"
)

// HasClock says whether a program was built with Clock: it names the variable then.
func HasClock(path string) (bool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("look for a clock in a program: %w", err)
	}
	return bytes.Contains(b, []byte("JX_CLOCK")), nil
}

// Clock gives a program a clock of its own that can be set while it runs: its wall
// clock gets an offset, and the monotonic clock, with all timers, another rate. The
// program reads both from the file named by JX_CLOCK, "RATE OFFSET", for example
// "1 -1h", every 20 ms. It needs -ldflags=-checklinkname=0.
//
// These are changes of the Go runtime, and made for one release of it: see Write.
var Clock = []Patch{
	{"go:src/runtime/time_nofake.go", `func nanotime() int64 {
	return nanotime1()
}`, `func nanotime() int64 {
	t := nanotime1()
	c := (*jxClock)(jxP)
	if c == nil {
		return t
	}
	return c.mono + int64(float64(t-c.at)*c.rate)
}

type jxClock struct {
	at, mono, wall int64
	rate           float64
}

var jxP unsafe.Pointer

//go:linkname jxSetClock jxclock.set
func jxSetClock(rate float64, wall int64) {
	c := new(jxClock)
	c.at, c.mono, c.wall, c.rate = nanotime1(), nanotime(), wall, rate
	jxP = unsafe.Pointer(c)
}

//go:nosplit
func jxWall() int64 {
	if c := (*jxClock)(jxP); c != nil {
		return c.wall
	}
	return 0
}`},
	{"go:src/runtime/time_linux_amd64.s", "TEXT time·now<ABIInternal>(SB)", "TEXT runtime·jxRealNow<ABIInternal>(SB)"},
	{"go:src/runtime/time_linux_amd64.s", "// func now() (", "// func jxRealNow() ("},
	{"go:src/runtime/timeasm.go", `//go:linkname time_now time.now
func time_now() (sec int64, nsec int32, mono int64)
`, `func jxRealNow() (sec int64, nsec int32, mono int64)

//go:linkname time_now time.now
//go:nosplit
func time_now() (sec int64, nsec int32, mono int64) {
	sec, nsec, _ = jxRealNow()
	return sec + jxWall()/1e9, nsec, nanotime()
}
`},
	// With an assembly file beside it, a function may be declared without a body.
	{"cmd/lockerd/zz_jx.s", "", "\n"},
	{"cmd/lockerd/zz_jx.go", "", `package main

import (
	"fmt"
	"os"
	"time"
	_ "unsafe"
)

//go:linkname setClock jxclock.set
func setClock(rate float64, wall int64)

func init() {
	path := os.Getenv("JX_CLOCK")
	if path == "" {
		return
	}
	go func() {
		last := ""
		for {
			b, _ := os.ReadFile(path)
			if s := string(b); s != last && s != "" {
				var rate float64
				var offset string
				if n, _ := fmt.Sscan(s, &rate, &offset); n == 2 {
					d, _ := time.ParseDuration(offset)
					setClock(rate, int64(d))
					last = s
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
}
`},
}
