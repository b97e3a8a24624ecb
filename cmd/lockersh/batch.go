package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
	"github.com/lockerd/lockerd/freezer/checkpoint/self"
	"github.com/lockerd/lockerd/job"
)

// A batch runner is the process between lockersh and a command that is checkpointed: to
// lockersh and its guard it is the command. It starts the command, or restores it as its
// child, makes its checkpoints, and ends as it ended.
//
// It is a process of its own so that nothing of this happens after the lease: the guard
// kills what is below lockersh, and so whoever restores or writes a context, whether
// lockersh itself still runs or not. And should that come too late, on a host that was
// asleep, the names of the contexts have the fence; see [series].
//
// The command gets a session of its own, because CRIU refuses a process whose session's
// leader is outside of its pid namespace, and could restore no terminal on another host.
// It does not inherit the lock's anchor, a connection that CRIU could not restore. So
// the lock ends with its lease, or when lockersh releases it, and the runner sees to it that
// nothing of a command that was killed is left.
const batchName = "lockersh-batch"

// batch is what a runner has to know, in JSON.
type batch struct {
	Lock     string        `json:"lock"`            // for people
	Name     string        `json:"name"`            // as part of a file's name
	Dir      string        `json:"dir,omitempty"`   // of the contexts; empty for one in the working directory, when asked for
	Every    time.Duration `json:"every,omitempty"` // ns from one to the next
	Compress bool          `json:"zstd,omitempty"`
	Wait     time.Duration `json:"wait"`            // ns that the command may take to ask for a checkpoint that it was told of
	Trust    bool          `json:"trust,omitempty"` // restore what others could have written
	Ended    uint64        `json:"ended,omitempty"` // fence of the job's last run that ended by itself
	Verbose  bool          `json:"verbose,omitempty"`

	translate  func()
	terminated atomic.Bool
}

// sigDrain is what lockersh sends a runner for SIGTERM: save the command, and end it in any
// case. Of the signals that ask for a checkpoint the higher one has the say.
const sigDrain = self.SIGCKPTEXIT + 1

// exitOS is for a job that cannot be restored on this host (EX_OSERR of sysexits.h).
const exitOS = 71

// runner is the life of such a process.
type runner struct {
	batch
	argv   []string
	criu   *checkpoint.CRIU
	series *series
	root   int // the command's process

	asked     bool // somebody has sent a signal that ends it
	leaving   bool // it has been checkpointed and ended
	attempts  chan attempt
	cancel    context.CancelFunc // of the checkpoint that is being made, or nil
	making    syscall.Signal     // what that one is for
	next      syscall.Signal     // what another one is wanted for
	timer     *time.Timer
	door      door
	status    syscall.WaitStatus
	ended     chan struct{}
	haveSaved bool // there is a context
}

func (r *runner) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "lockersh: "+r.Lock+": "+strings.ReplaceAll(text, "\n", "; "))
}

// runBatch is main of a runner. The arguments are what it has to know, and the command.
func runBatch(args []string) int {
	// The command is killed when the thread ends that has started or restored it.
	runtime.LockOSThread()
	r := &runner{argv: args[1:], attempts: make(chan attempt, 1), ended: make(chan struct{}), door: newDoor()}
	if err := json.Unmarshal([]byte(args[0]), &r.batch); err != nil || len(r.argv) == 0 {
		return exitUsage
	}
	signals := make(chan os.Signal, 64)
	for _, s := range []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
		self.SIGCKPT, self.SIGCKPTEXIT, sigDrain,
	} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	// What the command leaves behind comes to us.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		r.say("%v", err)
		return exitInternal
	}
	var err error
	if r.criu, err = checkpoint.Find(context.Background()); err != nil {
		r.say("%v", err)
		return exitUnavailable
	}
	if err := r.openDoor(); err != nil { // before there is somebody who would come
		r.say("%v", err)
		return exitOS
	}
	if code, err := r.begin(); err != nil || r.root == 0 {
		r.closeDoor()
		if err != nil {
			r.say("%v", err)
		}
		return code
	}
	close(r.door.known)
	go func() {
		_ = job.Reap(func(pid int, status syscall.WaitStatus) bool {
			if pid == r.root {
				r.status = status
				close(r.ended)
			}
			return true
		})
	}()
	r.watch(signals)
	return r.end()
}

// begin starts or restores the command. Without both and an error, the status is that
// with which it has ended elsewhere.
func (r *runner) begin() (code int, err error) {
	if r.Dir == "" {
		return r.start()
	}
	fence, err := strconv.ParseUint(os.Getenv("LOCKER_FENCE"), 10, 64)
	if err != nil {
		return exitInternal, fmt.Errorf("the lock has no fence: %w", err)
	}
	r.series = &series{dir: r.Dir, name: r.Name, fence: fence}
	done, err := r.series.lastEnding()
	if err != nil {
		return exitInternal, err
	}
	if done.Fence > r.Ended {
		r.say("it has ended on %s with status %d while this host waited", done.Host, done.Status)
		return done.Status, nil
	}
	contexts, err := r.series.takeOver(done)
	if err != nil {
		return exitInternal, err
	}
	if err := fencefile.Replace(fencefile.Path(r.Lock), fence); err != nil {
		return exitOS, err
	}
	var first error // why the newest cannot be restored
	class := checkpoint.Env
	for _, id := range contexts {
		restored, err := checkpoint.Restart(context.Background(), checkpoint.Plan{
			File: r.series.path(id, contextEnd), Trusted: r.Trust, KeepGroups: true, KeepSessions: true, CRIU: r.criu,
		})
		if errors.Is(err, checkpoint.ErrDamaged) {
			r.say("%v; it is kept as %s", err, r.series.setAside(id))
			continue
		}
		if err != nil {
			// Of the two the one before may do, if a file has changed that the job was reading.
			e := (*checkpoint.Error)(nil)
			if temp := errors.As(err, &e) && e.Class == checkpoint.Temp; temp || first == nil {
				first = err
				if temp {
					class = checkpoint.Temp
					break
				}
			}
			continue
		}
		if first != nil {
			r.say("the newest checkpoint cannot be restored: %v", first)
		}
		m := restored.Manifest
		r.root, r.haveSaved = m.Root, true
		r.say("goes on as it was at %s on %s", m.Created.Format(time.RFC3339), m.Host)
		return 0, nil
	}
	if first != nil {
		r.forgetFence()
		if errors.Is(first, checkpoint.ErrUntrusted) {
			first = fmt.Errorf("%w, or say --checkpoint-trust", first)
		}
		if class == checkpoint.Temp {
			return exitTempFail, fmt.Errorf("its checkpoint cannot be restored now, and is kept: %w", first)
		}
		return exitOS, fmt.Errorf("its checkpoint cannot be restored on this host, and is kept: %w", first)
	}
	if len(contexts) > 0 {
		r.say("no checkpoint of it is left; it starts anew")
	}
	return r.start()
}

func (r *runner) forgetFence() { _ = os.Remove(fencefile.Path(r.Lock)) }

func (r *runner) start() (code int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return exitInternal, err
	}
	defer null.Close()
	if r.root, err = job.Spawn(r.argv, [3]*os.File{null, os.Stdout, os.Stderr}); err != nil {
		if r.series != nil {
			r.forgetFence()
		}
		return job.StartCode(err), err
	}
	return 0, nil
}

// watch makes checkpoints until the command has ended.
func (r *runner) watch(signals <-chan os.Signal) {
	r.timer, r.door.patience = time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	r.timer.Stop()
	r.door.patience.Stop()
	r.later()
	defer r.timer.Stop()
	defer r.door.patience.Stop()
	for {
		select {
		case <-r.ended:
			if r.cancel != nil {
				if r.making < self.SIGCKPTEXIT {
					r.cancel()
				}
				r.finished(<-r.attempts)
			}
			return
		case err := <-r.attempts:
			r.finished(err)
		case <-r.timer.C:
			r.want(self.SIGCKPT)
		case <-r.door.patience.C:
			r.declined()
		case q := <-r.door.wishes:
			r.take(q)
		case s := <-signals:
			r.obey(s.(syscall.Signal))
		}
	}
}

// later sets the time of the next checkpoint.
func (r *runner) later() {
	if r.Every > 0 {
		r.timer.Reset(r.Every)
	}
}

func (r *runner) obey(s syscall.Signal) {
	switch s {
	case sigDrain:
		if r.making == s || r.next == s || r.door.told == s {
			r.hurry() // who sends it again is impatient
			return
		}
		r.want(s)
	case self.SIGCKPT, self.SIGCKPTEXIT:
		r.want(s)
	case syscall.SIGTERM:
		r.asked = true
		if r.series == nil {
			_ = syscall.Kill(-r.root, s)
			return
		}
		// lockersh itself sends the other signal instead: this is the loss of the lock, and
		// all processes of the command have been sent it.
		r.Every, r.next = 0, 0
		r.timer.Stop()
		r.forgive()
		if r.cancel != nil {
			r.cancel()
		}
	default:
		r.asked = r.asked || s == syscall.SIGINT || s == syscall.SIGQUIT
		_ = syscall.Kill(-r.root, s)
	}
}

// want has the command saved: by itself if it looks at the signal, or else at once.
func (r *runner) want(why syscall.Signal) {
	switch {
	case r.door.told >= why:
	case r.cancel != nil || r.door.told != 0:
		r.next = max(r.next, why)
	case !r.tell(why):
		r.make(why)
	}
}

// order is what is the same in all checkpoints.
func (r *runner) order() checkpoint.Order {
	o := checkpoint.Order{
		Target: checkpoint.Tree(r.root), CRIU: r.criu, Compress: r.Compress,
		Locks: []checkpoint.Lock{{Name: r.Lock}},
	}
	if r.series != nil {
		o.File, o.Exclusive = r.series.next(), true
		o.Locks[0].Fence = r.series.fence
	}
	return o
}

// make begins a checkpoint.
func (r *runner) make(why syscall.Signal) {
	o := r.order()
	if r.series == nil {
		o.File = fmt.Sprintf("context.%d", r.root)
	}
	if why >= self.SIGCKPTEXIT {
		o.Signal = syscall.SIGKILL
	}
	r.attempt(context.Background(), why, o, r.series != nil, nil)
}

// attempt is a checkpoint that has come to an end.
type attempt struct {
	report *checkpoint.Report
	err    error
	from   *wish // nil if it was us who wanted it
}

// attempt begins one. With quiet the command must not have locked the fence's file.
func (r *runner) attempt(ctx context.Context, why syscall.Signal, o checkpoint.Order, quiet bool, from *wish) {
	ctx, r.cancel = context.WithCancel(ctx)
	r.making = why
	go func() {
		a := attempt{from: from}
		defer func() { r.attempts <- a }()
		if quiet {
			release, err := fencefile.Hold(ctx, fencefile.Path(r.Lock))
			if err != nil {
				a.err = fmt.Errorf("no checkpoint: %w", err)
				return
			}
			defer release()
			if o.Signal == 0 {
				o.Copied = release
			}
		}
		if a.report, a.err = checkpoint.Checkpoint(ctx, o); a.err == nil && (r.Verbose || r.series == nil) {
			r.say("checkpoint %s: %d bytes, %s", filepath.Base(o.File), a.report.Size, became(o.Signal, a.report.Pause))
		}
	}()
}

// became says what has become of a command that was saved.
func became(sig syscall.Signal, pause time.Duration) string {
	if sig == syscall.SIGKILL {
		return "and it was ended"
	}
	return fmt.Sprintf("it stood still for %v", pause.Round(time.Millisecond))
}

// finished is for the end of a checkpoint.
func (r *runner) finished(a attempt) {
	r.cancel()
	r.cancel = nil
	why := r.making
	r.making = 0
	gone := false
	select {
	case <-r.ended:
		gone = true
	default:
	}
	switch {
	case a.err == nil:
		r.haveSaved = true
		r.leaving = why >= self.SIGCKPTEXIT
		if r.series != nil {
			r.series.prune()
		}
	case gone: // it ended meanwhile, and that is what counts
	default:
		r.failed(why, a.err)
	}
	if a.from != nil {
		a.from.answer <- a
	}
	if gone || r.leaving {
		return
	}
	r.goOn()
}

// failed says why there is no checkpoint, and ends a command that was to end.
func (r *runner) failed(why syscall.Signal, err error) {
	r.say("%v", err)
	if why == sigDrain {
		r.say("so it is told to end without")
		r.asked = true
		_ = syscall.Kill(-r.root, syscall.SIGTERM)
	}
}

// goOn does what is wanted next.
func (r *runner) goOn() {
	r.later()
	if q := r.door.waits; q != nil {
		r.door.waits = nil
		r.take(q)
	} else if next := r.next; next != 0 {
		r.next = 0
		r.want(next)
	}
}

// end ends as the command did.
func (r *runner) end() int {
	r.closeDoor()
	byItself := !r.leaving && !r.asked && r.status.Exited()
	if r.series != nil {
		r.forgetFence()
		if byItself {
			if err := r.series.finish(r.status.ExitStatus()); err != nil {
				r.say("%v", err)
			}
			checkpoint.Sweep(r.Dir) // there may be no next one for long
		} else if r.haveSaved {
			r.say("its last checkpoint is kept in %s, and it goes on from there when it is run again", r.Dir)
		}
	}
	if r.leaving || r.status.Signaled() {
		if left := job.KillBelow(); left > 0 {
			r.say("%d processes of it cannot be killed", left)
		}
	}
	switch {
	case r.leaving:
		return 128 + int(self.SIGCKPTEXIT)
	case r.status.Signaled():
		job.EndBy(r.status.Signal())
	}
	return r.status.ExitStatus()
}
