package freezer

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bootID names this boot of the kernel (random(4)).
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// pidNamespace is where process numbers count (pid_namespaces(7)); 0 if not known.
var pidNamespace = sync.OnceValue(func() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
})

// boottime is the time since the boot, with that in suspend (CLOCK_BOOTTIME).
func boottime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(err) // it exists since Linux 2.6.39
	}
	return time.Duration(now.Nano())
}

// wall is the time of day at a time of CLOCK_BOOTTIME.
func wall(at time.Duration) time.Time { return time.Now().Add(at - boottime()) }
