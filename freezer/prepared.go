package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Why a freeze has ended: see [Prepared.Cause].
const (
	CauseAsked    = "asked"    // by Thaw, or by Close of the Executor
	CauseDeadline = "deadline" // the time was up
	CauseQuorum   = "quorum"   // the lease has run out: whoever renews it was out of touch
	CauseGuard    = "guard"    // the guard was killed, or told to end
	CauseLocal    = "local"    // somebody on this host has thawed it, or a part, as with thawfs
	CauseFailed   = "failed"   // Freeze has failed, or the guard could not thaw
)

// Prepared is an order that is ready to be carried out, or has been. Its methods may
// be called from any goroutine.
type Prepared struct {
	executor *Executor
	number   uint64
	order    Order
	guard    *Guard
	hooks    *hookRun // nil for none

	asked atomic.Bool
	done  chan struct{}
	err   error  // set before done is closed, as is cause
	cause string // of the thaw
}

// Freeze freezes, and says in few words what. After an error nothing is frozen; it is
// one of [Guard.Freeze].
func (p *Prepared) Freeze(ctx context.Context) (text string, err error) {
	r, err := p.guard.Freeze(ctx, p.order)
	if err != nil {
		return "", err
	}
	p.executor.warn(p.number, r.Warnings)
	text = r.String()
	if r.Running > 0 {
		text += fmt.Sprintf(", without %s that did not stop", plural(r.Running, "process", "processes"))
	}
	return text, nil
}

// Renew has the guard wait for the next one for as long as the lease says. It does not
// wait itself, and may be called at any time.
func (p *Prepared) Renew() { p.guard.Renew() }

// Thaw thaws, and waits for it. After an error something could not be thawed yet: a guard
// has failed to ([ErrNotThawed]), or was killed ([ErrGuardLost]), and nobody could do its
// work so far. It is tried again until Done.
func (p *Prepared) Thaw() error { return p.thaw(thawPatience) }

func (p *Prepared) thaw(patience time.Duration) error {
	p.asked.Store(true)
	err := p.guard.thaw(patience)
	if thawed(err) {
		<-p.done
	}
	select {
	case <-p.done:
		if errors.Is(p.err, ErrNotThawed) {
			return p.err
		}
		return nil
	default:
		return err
	}
}

// Done is closed when everything is thawed, whoever has done it; or when the Executor was
// closed, which leaves what cannot be thawed to whoever tries next.
func (p *Prepared) Done() <-chan struct{} { return p.done }

// Err says, when Done is closed, why it is: nil after Thaw, else [ErrDeadline],
// [ErrLease], [ErrGuardLost], [ErrThawed], [ErrBroken], or what had kept something from being thawed.
func (p *Prepared) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Cause is the reason in a word, when Done is closed; before that it is empty.
func (p *Prepared) Cause() string {
	select {
	case <-p.done:
		return p.cause
	default:
		return ""
	}
}

// attend waits for the thaw, and runs the hooks after it.
func (p *Prepared) attend() {
	select {
	case <-p.guard.Done():
		p.err = p.guard.err
	case <-p.executor.givenUp.Done():
		p.guard.leave()
		p.err = fmt.Errorf("%w yet: its guard has not ended", ErrNotThawed)
	}
	if !thawed(p.err) {
		p.insist()
	}
	switch asked := p.asked.Load(); {
	case errors.Is(p.err, ErrNotThawed):
		p.cause = CauseFailed
	case errors.Is(p.err, ErrDeadline):
		p.cause = CauseDeadline
	case errors.Is(p.err, ErrLease):
		p.cause = CauseQuorum
	case errors.Is(p.err, ErrBroken):
		p.cause = CauseLocal
	case p.err == nil && asked:
		p.cause = CauseAsked
	case p.err == nil:
		p.err, p.cause = ErrThawed, CauseLocal
	case errors.Is(p.err, ErrThawed) && asked: // before it was frozen
		p.err, p.cause = nil, CauseAsked
	case errors.Is(p.err, ErrGuardLost), errors.Is(p.err, ErrThawed):
		p.cause = CauseGuard
	default:
		p.cause = CauseFailed
	}
	close(p.done)
	if p.hooks != nil {
		p.hooks.thaw()
	}
	p.finish()
}

// String is for errors.
func (p *Prepared) String() string {
	var what []string
	for _, t := range p.order.Targets[:min(len(p.order.Targets), 8)] {
		what = append(what, t.String())
	}
	if len(p.order.Targets) > 8 {
		what = append(what, "...")
	}
	return fmt.Sprintf("order %d (%s)", p.number, strings.Join(what, ", "))
}

// insist does the guard's work by its journal, until that has gone.
func (p *Prepared) insist() {
	x := p.executor
	for {
		_, err := Recover(x.config.Dir)
		if _, gone := os.Stat(filepath.Join(x.config.Dir, p.guard.id+journalEnd)); err == nil && errors.Is(gone, os.ErrNotExist) {
			return
		}
		x.config.Log("something is still frozen", "order", p.number, "error", errors.Join(p.err, err))
		select {
		case <-x.closing.Done():
			return
		case <-time.After(watchPause):
		}
	}
}

// finish lets the executor forget the order.
func (p *Prepared) finish() {
	x := p.executor
	x.mu.Lock()
	delete(x.orders, p)
	x.mu.Unlock()
	x.work.Done()
}

// thawed says whether the error of a guard that has ended leaves nothing frozen.
func thawed(err error) bool {
	// Wrapped, ErrGuardLost says what has kept others from doing the guard's work.
	return err == ErrGuardLost || !errors.Is(err, ErrGuardLost) && !errors.Is(err, ErrNotThawed)
}
