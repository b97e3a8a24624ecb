package freezer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A holding is something that a guard freezes and thaws, by one way of doing it. One
// order may need several. The methods are called in the order in which they stand
// here, by one goroutine at a time.
//
// A new kind has a Kind, a case in holdings, a line of the journal (entry) with its
// case in undo, and a place in the Report; nothing else knows of kinds. Where the kernel
// may keep a thread for long, as in an ioctl that waits for a disk, freeze does it in a
// goroutine and leaves it behind when ctx ends; thaw then has to make sure that
// what comes late is undone as well.
type holding interface {
	// open gets hold of whatever freezing and thawing will need, and changes nothing.
	// Until release nothing else may be opened.
	open(h *host) error
	// ready refuses what the kernel would refuse, and does ahead what would make the
	// freeze long, but changes nothing. It may take as long as the disk, and is left
	// out where everything has to be frozen at once.
	ready(h *host) error
	// freeze freezes, and returns when everything has come to rest, or with an error
	// when it does not; it has then frozen a part. It ends soon after ctx does, with
	// its cause. Nothing is changed before note has written down how to undo it, which
	// is what an entry says; an error of note is for freeze to return.
	freeze(ctx context.Context, note func(...entry) error, r *Report) error
	// thaw undoes all that freeze has done, however far it came. It is called again
	// after an error. It neither blocks for long nor needs memory or files.
	thaw() error
	// await waits until somebody else has thawed something of it, and says what; empty if
	// that cannot be known before the thaw, or matters no more. It is called when all is
	// frozen, in a goroutine of its own that lasts as long as the process: beside thaw,
	// which does not wait for it.
	await() string
	// finish closes what others may wait for once all is thawed, and says what thaw has
	// found thawed by somebody else; empty if nothing.
	finish() string
	// release closes what open has opened.
	release()
}

// host is what holdings need to know of where they are.
type host struct {
	dir       string
	order     *Order
	requester int
	others    []record         // of guards that have frozen something now
	named     map[int32]uint64 // when those began that the order names, if seen before
}

// guards are those that must not be frozen.
func (h *host) guards() (all []process) {
	for i := range h.others {
		if !h.others[i].unseen { // else it is not in our process table
			all = append(all, h.others[i].Guard)
		}
	}
	return all
}

// holdings divides an order.
func holdings(o *Order) (all []holding) {
	byWalk, ofFiles := false, false
	for _, t := range o.Targets {
		switch t.Kind {
		case KindCgroup:
			all = append(all, &cgroupHolding{path: t.Path})
		case KindFileSystem:
			ofFiles = true
		default:
			if !byWalk {
				byWalk = true
				all = append(all, &walkHolding{})
			}
		}
	}
	// Last: who waits for a frozen file system cannot be stopped.
	if ofFiles {
		all = append(all, &fsHolding{targets: o.Targets})
	}
	return all
}

// walkHolding holds all targets of an order that are processes.
type walkHolding struct {
	walk *walk
	host *host
}

func (w *walkHolding) open(h *host) error {
	s, err := newScope(h.order, h.requester, h.guards())
	if err != nil {
		return err
	}
	w.walk, w.host = &walk{scope: s, order: h.order}, h
	for pid, start := range s.named {
		if began, seen := h.named[pid]; seen && began != start {
			return fmt.Errorf("%w: process %d has ended, and another has its number", ErrNoTarget, pid)
		}
	}
	h.named = s.named
	return nil
}

func (w *walkHolding) ready(*host) error { return nil }

func (w *walkHolding) freeze(ctx context.Context, note func(...entry) error, r *Report) error {
	w.walk.note, w.walk.report = note, r
	err := w.walk.freeze(ctx)
	r.Rounds = w.walk.rounds
	r.Processes += w.walk.held()
	if err != nil {
		return err
	}
	return w.walk.checkHeld(w.host.others)
}

func (w *walkHolding) thaw() error {
	if w.walk == nil {
		return nil
	}
	return w.walk.thaw()
}

// Who is continued by others is found by the thaw.
func (w *walkHolding) await() string { return "" }

func (w *walkHolding) finish() string {
	if w.walk == nil {
		return ""
	}
	return w.walk.brokenBy()
}

func (w *walkHolding) release() {
	if w.walk != nil {
		w.walk.close()
	}
}

// cgroupHolding holds one cgroup.
type cgroupHolding struct {
	path  string
	cg    *cgroup
	scope *scope
	host  *host
}

func (c *cgroupHolding) open(h *host) (err error) {
	// What has to run on is the same for both ways.
	if c.scope, err = newScope(&Order{Except: h.order.Except, Ancestors: h.order.Ancestors}, h.requester, h.guards()); err != nil {
		return err
	}
	c.host = h
	c.cg, err = openCgroup(c.path, c.scope.sparedNumbers(), c.scope.proc)
	if err != nil {
		return err
	}
	for i := range h.others {
		for _, e := range h.others[i].entries {
			if e.kind == entryCgroup && e.inode == c.cg.inode {
				return h.others[i].held()
			}
		}
	}
	return nil
}

func (c *cgroupHolding) ready(*host) error { return nil }

func (c *cgroupHolding) freeze(ctx context.Context, note func(...entry) error, r *Report) error {
	return c.cg.freeze(ctx, c.host.order, note, c.scope.proc, r)
}

func (c *cgroupHolding) thaw() error {
	if c.cg == nil {
		return nil
	}
	return c.cg.thaw()
}

// await is told by the kernel.
func (c *cgroupHolding) await() string {
	polls := []unix.PollFd{{Fd: int32(c.cg.event), Events: unix.POLLPRI}}
	for {
		// What has been before is seen now: an alarm is of the time after this.
		if what := c.cg.disturbed(); what != "" {
			return what
		}
		if _, err := unix.Poll(polls, -1); err != nil && err != unix.EINTR {
			return "" // the thaw finds it
		}
	}
}

func (c *cgroupHolding) finish() string {
	if c.cg == nil {
		return ""
	}
	return c.cg.thawed
}

func (c *cgroupHolding) release() {
	if c.cg != nil {
		c.cg.close()
	}
	if c.scope != nil {
		c.scope.proc.close()
	}
}

// thawAll thaws holdings, the last first.
func thawAll(all []holding) error {
	var failed error
	for _, h := range slices.Backward(all) {
		failed = errors.Join(failed, h.thaw())
	}
	return failed
}

// keepWatch calls lost with what somebody else has thawed of holdings, as soon as that is
// known, from other goroutines.
func keepWatch(all []holding, lost func(string)) {
	for _, h := range all {
		go func() {
			if what := h.await(); what != "" {
				lost(what)
			}
		}()
	}
}

// finishAll is for when all is thawed: the error is for what others had thawed before; nil
// if nothing.
func finishAll(all []holding) (broken error) {
	for _, h := range all {
		if what := h.finish(); what != "" && broken == nil {
			broken = fmt.Errorf("%w: %s", ErrBroken, what)
		}
	}
	return broken
}
