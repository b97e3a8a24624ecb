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
// "1 -1h", every 20 ms, and tells at the same time what its clocks are in fact, in that
// file's name with ".is" behind it: the kernel's monotonic clock and its own, the
// kernel's wall clock and its own, all in nanoseconds. It needs
// -ldflags=-checklinkname=0.
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
	wall := jxWall()
	sec, nsec = sec+wall/1e9, nsec+int32(wall%1e9)
	if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	} else if nsec >= 1e9 {
		sec, nsec = sec+1, nsec-1e9
	}
	return sec, nsec, nanotime()
}
`},
	// With an assembly file beside it, a function may be declared without a body.
	{"cmd/lockerd/zz_jx.s", "", "\n"},
	{"cmd/lockerd/zz_jx.go", "", `package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

//go:linkname setClock jxclock.set
func setClock(rate float64, wall int64)

func init() {
	path := os.Getenv("JX_CLOCK")
	if path == "" {
		return
	}
	began, at := time.Now(), kernelClock(1)
	go func() {
		last := ""
		for {
			mono, own := kernelClock(1), int64(time.Since(began))+at
			wall, ownWall := kernelClock(0), time.Now().UnixNano()
			if os.WriteFile(path+".next.is", fmt.Appendln(nil, mono, own, wall, ownWall), 0o600) == nil {
				_ = os.Rename(path+".next.is", path+".is")
			}
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

// kernelClock asks the kernel: 0 is the wall clock, 1 the monotonic one.
func kernelClock(which uintptr) int64 {
	var t syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, which, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}
`},
}
