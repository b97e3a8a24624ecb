package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// closeAll may be called again, and from elsewhere to end what clients are at.
func closeAll(conns []*conn) {
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// reservedFiles are descriptors that are not for clients.
const reservedFiles = 200

// allowFiles raises the limit on open files for n clients, as far as we may. The
// servers that we start inherit it.
func allowFiles(n int) error {
	want := uint64(n + reservedFiles)
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return failed(fmt.Errorf("ask for the limit on open files: %w", err))
	}
	// A server leaves a sixteenth of its limit unused.
	if want += want / 8; r.Cur >= want {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(want, r.Max)}); err != nil {
		return failed(fmt.Errorf("%d clients need %d open files, and the limit is %d: raise it with ulimit -n", n, want, r.Max))
	}
	return nil
}
