package versus

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the time of a clock that all processes of this machine share.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // there is no Linux without it
	return time.Duration(ts.Nano())
}
