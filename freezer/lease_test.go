package freezer

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A requester that is stopped keeps its socket, and yet nothing stays frozen.
func TestRequesterStopped(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	r := act(t, fmt.Sprintf("requester %d -1ns false 2s", v.pid()))
	if line := r.line(t); !strings.HasPrefix(line, "frozen ") {
		t.Fatal(line)
	}
	if n := stopped(t); n != 4 {
		t.Errorf("%d processes are stopped", n)
	}
	if err := syscall.Kill(r.pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, "the thaw", func() bool { return stopped(t) == 1 && stateOf(r.pid()) == "T" })
	if err := syscall.Kill(r.pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if line := r.line(t); line != "over: thawed because the requester was silent for 2s" {
		t.Errorf("the requester learns %q", line)
	}
	awaitThaw(t)
	cleanRun(t)
}

// Who renews keeps it frozen for longer than the lease, and no longer than that after
// the last time.
func TestExecutorRenews(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	x, _ := newExecutor(t, nil)
	const lease = 500 * time.Millisecond
	// On a machine that has stood still for as long it is right to thaw.
	for try := 1; ; try++ {
		p, err := x.Prepare(t.Context(), 7, ActionFSFreeze, []byte(fsSpec(point)), -1, lease)
		if err != nil {
			t.Fatal(err)
		}
		p.Renew()
		if _, err := p.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s, err := p.guard.State(); err == nil && (s.Lease != lease || s.Left >= 0) {
			t.Errorf("%+v", s)
		}
		early := false
		for until := time.Now().Add(2 * lease); !early && time.Now().Before(until); {
			p.Renew()
			select {
			case <-p.Done():
				early = true
			case <-time.After(lease / 20):
			}
		}
		<-p.Done()
		if p.Cause() != CauseQuorum || !errors.Is(p.Err(), ErrLease) || frozenFS(t, point) {
			t.Fatalf("%q, %v", p.Cause(), p.Err())
		}
		p.Renew() // late, and of no effect
		if err := p.Thaw(); err != nil {
			t.Error(err)
		}
		if !early {
			break
		}
		if try == 5 {
			t.Fatal("thawed though it was renewed")
		}
	}
	cleanRun(t)
}

func TestLeaseOfSilence(t *testing.T) {
	timer, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(timer)
	requester, other := &packets{}, &packets{}
	alarm := event{msg: message{Op: opDeadline}}
	const lease = time.Minute
	for _, c := range []struct {
		name          string
		silent, until time.Duration // since and from now; 0 for no deadline
		before        []event
		want          error
		armed         time.Duration // for how long at most
	}{
		{name: "silent", silent: lease, want: ErrLease},
		{name: "not for so long", silent: lease / 2, armed: lease / 2},
		{name: "time up", silent: lease / 2, until: -1, want: ErrDeadline},
		{name: "time up, and silent", silent: 2 * lease, until: -1, want: ErrDeadline},
		{name: "the deadline comes first", until: time.Second, armed: time.Second},
		{name: "renewed", silent: 2 * lease, before: []event{{from: requester, msg: message{Op: opRenew}}}, armed: lease},
		{name: "by a stranger", silent: 2 * lease, before: []event{{from: other, msg: message{Op: opRenew}}}, want: ErrLease},
	} {
		now := boottime()
		g := &guard{timer: timer, requester: requester, order: &Order{Lease: lease}, heard: now - c.silent}
		if c.until != 0 {
			g.until = now + c.until
		}
		for _, e := range c.before {
			if over, _ := g.handle(&e); over {
				t.Errorf("%s: over too early", c.name)
			}
		}
		over, why := g.handle(&alarm)
		if over != (c.want != nil) || !errors.Is(why, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, over, why, c.want)
		}
		var at unix.ItimerSpec
		if err := unix.TimerfdGettime(timer, &at); err != nil {
			t.Fatal(err)
		}
		if left := time.Duration(at.Value.Nano()); !over && (left <= 0 || left > c.armed) {
			t.Errorf("%s: the timer has %v to go, want at most %v", c.name, left, c.armed)
		}
	}
	for _, o := range []Order{{Lease: -1}, {Lease: maxLease + 1}, {Lease: lease, Detach: true}} {
		o.Targets = []Target{Machine()}
		if err := o.Validate(); !errors.Is(err, ErrOrder) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
