package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/lockerd/lockerd/client"
)

// releaseTime bounds the release of a lock. Past it the cluster finds out by itself that
// this process is gone.
const releaseTime = 10 * time.Second

// heldLock is the lock that a freeze stands under; nil for none.
type heldLock struct {
	locker  *client.Locker
	options client.Options
}

// With no lock server, connectTries and the pause between two of them, which is up to
// twice as long, make an end in seconds: the freeze has the servers' own host at hand.
const (
	connectTries = 3
	connectDelay = time.Second
)

// takeLock waits for a lock and holds it for this process.
func (p *program) takeLock(ctx context.Context, name string, w *waiting) (*heldLock, error) {
	if name == "" {
		return nil, nil
	}
	var id [4]byte
	rand.Read(id[:])
	// A name of its own: whoever asks again under one that holds a lock is told so.
	o := client.Options{
		Locks: []string{name}, User: "order-" + hex.EncodeToString(id[:]) + "@" + client.FQDN(),
		Autounlock: true, HoldLimit: client.NoLimit, NeedFence: true, KeepOnClose: true,
		ConnectTries: connectTries, ConnectDelay: connectDelay,
		Hooks: client.Hooks{Retry: func(delay time.Duration, err error) {
			fmt.Fprintf(p.errs, "lockctl: --lock %s: no lock server yet: %v; trying again in %.3g s\n", name, err, delay.Seconds())
		}},
	}
	h := &heldLock{}
	err := w.do(ctx, func(ctx context.Context) (err error) {
		if o.Hosts, err = p.lockServers(ctx); err != nil {
			return err
		}
		h.options = o
		h.locker, err = client.Acquire(ctx, o)
		switch {
		case errors.Is(err, client.ErrNoServer):
			err = fmt.Errorf("%w: --lock %s: %w", errNoAnswer, name, err)
		case err != nil && ctx.Err() == nil:
			err = fmt.Errorf("%w: --lock %s: %w", errRefused, name, err)
		}
		return err
	})
	if err != nil {
		if h.locker != nil {
			h.release(p)
		}
		return nil, err
	}
	return h, nil
}

// lockServers are those of the environment, else the node that is asked to freeze.
func (p *program) lockServers(ctx context.Context) ([]string, error) {
	if os.Getenv("IPCLOCKER_HOST") != "" {
		return nil, nil
	}
	var self struct {
		Name string `json:"name"`
	}
	var all []member
	for path, v := range map[string]any{"/v1/status": &self, "/v1/members": &all} {
		b, err := p.ask(ctx, http.MethodGet, path, nil, nil)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, m := range all {
		if m.Name == self.Name && m.Client != "" {
			return []string{m.Client}, nil
		}
	}
	return nil, nil
}

func (h *heldLock) fence() uint64 {
	if h == nil {
		return 0
	}
	return h.locker.Fence()
}

// leave lets the hold outlive this process: it then ends with the order.
func (h *heldLock) leave(ctx context.Context) error {
	if h == nil {
		return nil
	}
	o := h.options
	o.Autounlock, o.Try, o.Request = false, true, h.locker.Grant().ID
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	bare, err := client.Acquire(ctx, o)
	if err != nil {
		return fmt.Errorf("%w: leave the lock to the order: %w", errNoAnswer, err)
	}
	if bare.Fence() != h.locker.Fence() {
		_ = bare.Unlock(ctx)
		return fmt.Errorf("%w: the lock was lost", errRefused)
	}
	_, _ = bare.Close(), h.locker.Close() // which keep it
	h.locker = nil
	return nil
}

// release gives the lock up, if it is still this process's.
func (h *heldLock) release(p *program) {
	if h == nil || h.locker == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	if err := h.locker.Unlock(ctx); err != nil && !errors.Is(err, client.ErrLost) && !errors.Is(err, client.ErrUncertain) {
		fmt.Fprintf(p.errs, "lockctl: cannot release the lock: %v; the cluster does it when it learns of the end of this process\n", err)
	}
	_ = h.locker.Close()
	h.locker = nil
}
