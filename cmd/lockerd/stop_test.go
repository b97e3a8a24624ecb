package main

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestStopWaitsForHooks: a node has a limit, and the hooks of what it thaws have not, but
// for a second signal.
func TestStopWaitsForHooks(t *testing.T) {
	const limit = 50 * time.Millisecond
	for name, c := range map[string]struct {
		node   time.Duration // what it takes
		hooks  time.Duration
		signal os.Signal
		want   string
	}{
		"in time":          {0, 0, nil, ""},
		"slow node":        {10 * time.Second, 0, nil, "it took more than 50ms"},
		"slow hooks":       {0, extendEvery + limit, nil, ""},
		"SIGHUP":           {0, 4 * limit, syscall.SIGHUP, ""},
		"somebody insists": {0, 10 * time.Second, syscall.SIGTERM, "terminated while hooks were told of a thaw"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				closing, signals, extended := make(chan struct{}), make(chan os.Signal, 1), 0
				s := stopping{limit: limit, closing: closing, signals: signals, extend: func() { extended++ }, log: hclog.NewNullLogger()}
				err := s.stop(func(context.Context) error {
					time.Sleep(c.node)
					close(closing)
					if c.signal != nil {
						signals <- c.signal
					}
					time.Sleep(c.hooks)
					return nil
				}, func() error { return nil })
				// The bubble ends with what goes on in it.
				time.Sleep(c.node + c.hooks)
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
				if (extended > 0) != (c.hooks > extendEvery && c.signal == nil) {
					t.Errorf("more time was asked for %d times", extended)
				}
			})
		})
	}
}
