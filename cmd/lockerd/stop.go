package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// stopTime is how long a node may take to stop in good order, without hooks.
	stopTime = 5 * time.Second

	// extendEvery is how often systemd is asked for more time while hooks run, with
	// extendStop: see sd_notify(3).
	extendEvery = time.Second
	extendStop  = "EXTEND_TIMEOUT_USEC=10000000\n"
)

// stopping is how the program comes to its end.
type stopping struct {
	limit   time.Duration    // for the node
	closing <-chan struct{}  // closed when the node is done, and has thawed; nil without an executor
	signals <-chan os.Signal // a second one of which ends the wait for hooks
	extend  func()           // tells whoever waits for the end that it takes longer
	log     hclog.Logger
}

// stop ends the node and its HTTP port, and gives up on them in time. What has been frozen
// here is thawed by then. The hooks that are told of the thaw have a limit of their own,
// and are waited for: to bring back what they have stopped may take longer.
func (s stopping) stop(node func(context.Context) error, web func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.limit-s.limit/25)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := node(ctx)
		done <- errors.Join(err, web())
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(s.limit):
		return fmt.Errorf("it took more than %v", s.limit)
	case <-s.closing:
	}
	t := time.NewTicker(extendEvery)
	defer t.Stop()
	for said := false; ; {
		select {
		case err := <-done:
			return err
		case <-t.C:
			if !said {
				s.log.Info("all is thawed; waiting for the hooks that are told so")
			}
			said = true
			s.extend()
		case sig := <-s.signals:
			if sig != syscall.SIGHUP {
				return fmt.Errorf("%v while hooks were told of a thaw: the next lockerd on this host tells them again", sig)
			}
		}
	}
}
