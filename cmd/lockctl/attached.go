package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
)

const (
	// grace is the time that a command has to end in when nothing is frozen any more.
	grace = 10 * time.Second
	// signalLag is how much later than another process of our group we may get a
	// signal of the terminal.
	signalLag = 100 * time.Millisecond
)

// freezeFor runs a command while everything is frozen. From the freeze to the thaw
// nothing is written: the terminal may stand still.
func (p *program) freezeFor(ctx context.Context, f *freezing, req orderRequest, argv []string) error {
	ctx = context.WithoutCancel(ctx) // signals are the command's
	signals := job.Notify()
	defer job.Release(signals)
	j, err := job.Prepare(job.Options{Argv: argv, Signals: signals, LostSignal: syscall.SIGTERM, Grace: grace})
	if err != nil {
		return startError{err}
	}
	w := waiting{signals: signals, job: j}
	hold, err := p.takeLock(ctx, f.lock, &w)
	if err != nil {
		j.Abandon()
		return err
	}
	defer hold.release(p)
	req.Fence = hold.fence()
	s, err := p.openOrder(ctx, req, &w)
	if err != nil {
		j.Abandon()
		return err
	}
	defer s.close()
	o, err := p.awaitFrozen(s, &w)
	if err != nil {
		j.Abandon()
		return err
	}
	changes := []string{"LOCKERD_ORDER=" + strconv.FormatUint(o.ID, 10)}
	if req.Fence != 0 {
		changes = append(changes, "LOCKER_LOCK="+f.lock, "LOCKER_FENCE="+strconv.FormatUint(req.Fence, 10))
	}
	if err := j.Open(changes, nil); err != nil {
		return startError{err}
	}
	early := s.untilOver(j.Done(), o.ID)
	if early != nil {
		j.Lost()
	}
	exit := j.Wait()
	if early == nil {
		var last order
		if last, err = p.thawAttached(ctx, s, o.ID); err == nil {
			o, err = last, last.held()
		}
		early = err
	}
	s.close()
	hold.release(p)
	if f.verbose {
		p.tell(&o)
	}
	switch {
	case exit.Left > 0:
		return fmt.Errorf("%w; %d processes of the command cannot be killed", early, exit.Left)
	case early != nil:
		return early
	case exit.Interrupted:
		return interrupted{syscall.SIGINT}
	case exit.Code != 0:
		return exitStatus(exit.Code)
	}
	return nil
}

// untilOver waits until the freeze ends, which it says, or done.
func (s *orderStream) untilOver(done <-chan struct{}, id uint64) error {
	for {
		select {
		case <-done:
			return nil
		case o, ok := <-s.orders:
			switch {
			case !ok:
				return fmt.Errorf("%w: order %d: the node that it was given to is lost", errThawed, id)
			case o.over():
				return fmt.Errorf("%w: order %d: %s", errThawed, id, o.why())
			}
		}
	}
}

// thawAttached ends an order, and returns what it was in the end.
func (p *program) thawAttached(ctx context.Context, s *orderStream, id uint64) (last order, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	go func() {
		// If it has ended meanwhile, this is refused; the stream says how it ended.
		if _, err := p.ask(ctx, http.MethodPost, "/v1/orders/thaw", nil, thawRequest{ID: id}); err != nil && !errors.Is(err, errRefused) {
			cancel()
		}
	}()
	for {
		select {
		case o, ok := <-s.orders:
			switch {
			case !ok:
				return last, fmt.Errorf("%w, as far as is known: order %d: the node that it was given to is lost", errThawed, id)
			case o.State == stateClosed:
				return o, nil
			}
		case <-ctx.Done():
			return last, fmt.Errorf("%w, as far as is known: order %d: nobody says how it ended", errThawed, id)
		}
	}
}

// tell says afterwards what was frozen.
func (p *program) tell(o *order) {
	for _, n := range o.Nodes {
		fmt.Fprintf(p.errs, "lockctl: %s: %s, frozen within %v\n", plain(n.Node), plain(n.Text), time.Duration(n.Took)*time.Millisecond)
	}
	if len(o.Nodes) > 1 {
		fmt.Fprintf(p.errs, "lockctl: %v from the first to the last\n", time.Duration(o.Spread)*time.Millisecond)
	}
}

// waiting is what may end the wait for a freeze.
type waiting struct {
	signals <-chan os.Signal
	job     *job.Job // nil without a command
}

func (w *waiting) fallen() <-chan struct{} {
	if w.job == nil {
		return nil
	}
	return w.job.Done()
}

var errFallen = fmt.Errorf("%w: the process that was to run the command has been killed", errRefused)

// fell is the reason why the process that is to run the command has ended: the terminal
// may have sent its signal to both of us.
func (w *waiting) fell() error {
	select {
	case sig := <-w.signals:
		return interrupted{sig.(syscall.Signal)}
	case <-time.After(signalLag):
		return errFallen
	}
}

// do calls f, which ends when its context does.
func (w *waiting) do(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- f(ctx) }()
	select {
	case err := <-answer:
		return err
	case sig := <-w.signals:
		cancel()
		<-answer
		return interrupted{sig.(syscall.Signal)}
	case <-w.fallen():
		cancel()
		<-answer
		return w.fell()
	}
}

// openOrder asks for the freeze, and gives the order's life from there on.
func (p *program) openOrder(ctx context.Context, req orderRequest, w *waiting) (s *orderStream, err error) {
	// The first line comes when the order is in the table, which takes a leader.
	silence := errors.New("nothing within " + p.timeout.String())
	opened, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(p.timeout, func() { cancel(silence) })
	defer timer.Stop()
	err = w.do(opened, func(wait context.Context) error {
		// The stream outlives this wait, if that comes to its end.
		stop := context.AfterFunc(wait, func() { cancel(context.Cause(wait)) })
		defer stop()
		var err error
		s, err = p.followOrder(opened, req)
		return err
	})
	if err != nil {
		if s != nil {
			s.close()
		}
		cancel(nil)
	}
	return s, err
}

// awaitFrozen waits until everything is frozen. After an error nothing is: an attached
// order ends with its stream.
func (p *program) awaitFrozen(s *orderStream, w *waiting) (o order, err error) {
	for {
		select {
		case next, ok := <-s.orders:
			if !ok {
				return o, s.ended(p)
			}
			if o = next; o.over() {
				return o, fmt.Errorf("%w: %s", errRefused, o.why())
			}
			if o.State == stateFrozen {
				return o, nil
			}
		case sig := <-w.signals:
			return o, interrupted{sig.(syscall.Signal)}
		case <-w.fallen():
			return o, w.fell()
		}
	}
}

// freezeAndLeave freezes, and leaves it so. Nothing stays frozen whose number nobody was told.
func (p *program) freezeAndLeave(ctx context.Context, f *freezing, req orderRequest) error {
	if p.out.IsClosed() {
		return fmt.Errorf("%w: it is closed, and the number of the order would be lost; nothing is frozen", getopt.ErrOutput)
	}
	ctx = context.WithoutCancel(ctx)
	signals := job.Notify()
	defer job.Release(signals)
	// To write to a pipe that nobody reads is then an error, and not the end.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	w := waiting{signals: signals}
	hold, err := p.takeLock(ctx, f.lock, &w)
	if err != nil {
		return err
	}
	defer hold.release(p)
	req.Fence, req.ReleaseLock = hold.fence(), f.lock != ""
	// It would be carried out without us: a signal waits until its number is known.
	s, err := p.openOrder(ctx, req, &waiting{})
	if err != nil {
		if errors.Is(err, errNoAnswer) && !errors.As(err, new(unsent)) {
			fmt.Fprintln(p.errs, "lockctl: there may be an order, which goes on until its time is up: see lockctl orders")
		}
		return err
	}
	defer s.close()
	o, err := p.awaitFrozen(s, &w)
	if err == nil {
		err = hold.leave(ctx)
	}
	if err == nil {
		if f.verbose {
			p.tell(&o)
		}
		if p.json {
			err = p.printJSON(o)
		} else {
			_, err = fmt.Fprintln(p.out, o.ID)
		}
	}
	if err == nil {
		// To write that may have had to wait for the thaw.
		err = p.stillFrozen(ctx, o.ID)
	}
	if err != nil {
		if e := p.takeBack(ctx, s, o); e != nil {
			fmt.Fprintf(p.errs, "lockctl: %v\n", e)
		}
	}
	return err
}

// stillFrozen is nil if an order has not ended yet.
func (p *program) stillFrozen(ctx context.Context, id uint64) error {
	b, err := p.get(ctx, "/v1/orders", url.Values{"all": {"1"}})
	if err != nil {
		return err
	}
	var l orderList
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("%w from %s that lockctl understands: %w", errNoAnswer, p.where(), err)
	}
	i := slices.IndexFunc(l.Orders, func(o order) bool { return o.ID == id })
	switch {
	case i < 0:
		return fmt.Errorf("%w: order %d is over", errThawed, id)
	case l.Orders[i].over():
		return fmt.Errorf("%w: order %d: %s", errThawed, id, l.Orders[i].why())
	}
	return nil
}

// takeBack ends an order that was not to be, if it is not over.
func (p *program) takeBack(ctx context.Context, s *orderStream, o order) error {
	if o.over() {
		return nil
	}
	if o.ID == 0 {
		select {
		case first, ok := <-s.orders:
			if !ok {
				return errors.New("there may be an order, which goes on until its time is up: see lockctl orders")
			}
			if first.over() {
				return nil
			}
			o = first
		case <-time.After(p.timeout):
			return nil
		}
	}
	_, err := p.ask(ctx, http.MethodPost, "/v1/orders/thaw", nil, thawRequest{ID: o.ID})
	if err != nil && !errors.Is(err, errRefused) {
		return fmt.Errorf("order %d may go on without us, until its time is up; thaw it by another node: %w", o.ID, err)
	}
	return nil
}

// rehearse prints what the nodes say that they would freeze. The order is for that alone:
// nodes that do not know it refuse it.
func (p *program) rehearse(ctx context.Context, req orderRequest) error {
	req.Action, req.Attached = req.Action+freezer.ActionDryRun, true
	ctx = context.WithoutCancel(ctx)
	signals := job.Notify()
	defer job.Release(signals)
	w := waiting{signals: signals}
	s, err := p.openOrder(ctx, req, &w)
	if err != nil {
		return err
	}
	defer s.close()
	o, err := p.awaitFrozen(s, &w)
	if err != nil {
		return err
	}
	if _, err := p.thawAttached(ctx, s, o.ID); err != nil {
		return err
	}
	if p.json {
		return p.printJSON(o)
	}
	var text strings.Builder
	for _, n := range o.Nodes {
		fmt.Fprintf(&text, "%s: %s\n", plain(n.Node), plain(n.Text))
	}
	_, err = fmt.Fprint(p.out, text.String())
	return err
}
