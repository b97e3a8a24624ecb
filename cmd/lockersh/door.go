package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
	"github.com/lockerd/lockerd/freezer/checkpoint/self"
)

// door is where the command asks for its checkpoints, and what it was told of them.
type door struct {
	close    context.CancelFunc
	closed   chan error    // when nobody is served any more
	known    chan struct{} // closed when the command's process is known
	wishes   chan *wish
	waits    *wish          // for the end of another checkpoint
	told     syscall.Signal // what the command was told to ask for a checkpoint for; 0 if nothing
	whom     int            // which process of it
	patience *time.Timer    // until it has declined
}

func newDoor() door {
	return door{closed: make(chan error, 1), known: make(chan struct{}), wishes: make(chan *wish)}
}

// wish is the command's own for a checkpoint. There is one at a time.
type wish struct {
	ctx    context.Context
	order  checkpoint.Order
	answer chan attempt
}

// openDoor serves the command at a socket, and puts that into the environment.
func (r *runner) openDoor() error {
	var l *net.UnixListener
	var err error
	if r.Dir == "" {
		l, err = listen(fencefile.Dir, r.Lock, maxSockets)
	} else {
		l, err = listenAlone(fencefile.Dir, r.Lock, otherPatience)
	}
	if err != nil {
		return err
	}
	if err := os.Setenv(self.SocketVariable, l.Addr().String()); err != nil {
		return err
	}
	var ctx context.Context
	ctx, r.door.close = context.WithCancel(context.Background())
	o := self.Options{
		Root: func(int) int {
			select {
			case <-r.door.known:
				return r.root
			case <-ctx.Done():
				return 0
			}
		},
		Checkpoint: func(ctx context.Context, _ self.Event, o checkpoint.Order) (*checkpoint.Report, error) {
			q := &wish{ctx: ctx, order: o, answer: make(chan attempt, 1)}
			select {
			case r.door.wishes <- q:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			select {
			case a := <-q.answer:
				return a.report, a.err
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		},
		Done: func(e self.Event) {
			if e.Err != nil && e.Root != 0 && e.Report == nil && r.Verbose {
				r.say("process %d is told: %v", e.PID, e.Err)
			}
		},
	}
	go func() { r.door.closed <- self.Serve(ctx, l, o) }()
	return nil
}

func (r *runner) closeDoor() {
	r.door.close()
	if err := <-r.door.closed; err != nil {
		r.say("%v", err)
	}
}

// tell sends the command the signal for a checkpoint, if it looks at that.
func (r *runner) tell(why syscall.Signal) bool {
	pid, err := self.Forward(r.root, min(why, self.SIGCKPTEXIT))
	if err != nil {
		r.say("%v; so it is saved without being asked", err)
	}
	if pid == 0 {
		return false
	}
	r.door.told, r.door.whom = why, pid
	r.door.patience.Reset(r.Wait)
	return true
}

// forgive forgets that the command was told to ask.
func (r *runner) forgive() (why syscall.Signal) {
	why, r.door.told = r.door.told, 0
	r.door.patience.Stop()
	return why
}

// declined is for a command that was told, and has not asked.
func (r *runner) declined() {
	if r.door.told == 0 {
		return
	}
	whom := r.door.whom
	why := r.forgive()
	r.failed(why, fmt.Errorf("declined: process %d looks at signal %d, and did not ask for a checkpoint in %v",
		whom, int(min(why, self.SIGCKPTEXIT)), r.Wait))
	r.goOn()
}

// hurry ends the command without waiting for a checkpoint any longer.
func (r *runner) hurry() {
	if r.door.told == sigDrain {
		r.forgive()
		r.failed(sigDrain, errors.New("it is not waited for any longer"))
		r.goOn()
	}
	if r.cancel != nil {
		r.cancel()
	}
}

// take makes the checkpoint that the command asks for. If it was told to, it is one of
// that kind. In a series it is the next context: nobody would look for it elsewhere.
func (r *runner) take(q *wish) {
	if r.cancel != nil {
		r.door.waits = q
		return
	}
	o, asked := r.order(), q.order
	o.Asker = asked.Asker
	if r.series == nil {
		o.File, o.User = asked.File, asked.User
	}
	why := self.SIGCKPT
	if asked.Signal != 0 {
		why = self.SIGCKPTEXIT
	}
	if why = max(why, r.forgive()); why >= self.SIGCKPTEXIT {
		o.Signal = syscall.SIGKILL
	}
	// It suits the one who asks.
	r.attempt(q.ctx, why, o, false, q)
}

// The socket has to be at the same path wherever the command is restored, as that is in
// its environment: it is named for the locks. Only where another lockersh of this host has
// them too, which are shared then, it has another name.
const (
	socketEnd   = ".checkpoint"
	socketsLock = ".lock" // no name of a lock begins so
	maxSockets  = 1000
	// maxSocketName keeps the path within sockaddr_un (unix(7)).
	maxSocketName = 64
)

func socketName(locks string) string {
	name, err := seriesName(locks)
	if err != nil || len(name) > maxSocketName {
		sum := sha256.Sum256([]byte(locks))
		name = fmt.Sprintf("%%%x", sum[:16]) // no name begins so but with a number below 256
	}
	return name
}

// otherPatience is how long a lockersh that had the lock before may take to end.
const otherPatience = 5 * time.Second

// listenAlone is for a lock that nobody else has. Who listens at its socket all the same has
// one of the same name in another cluster, and the fence of that would be in the same file.
func listenAlone(dir, lock string, patience time.Duration) (*net.UnixListener, error) {
	for until := time.Now().Add(patience); ; time.Sleep(remainInterval) {
		l, err := listen(dir, lock, 1)
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		if time.Now().After(until) {
			return nil, errors.New("another lockersh on this host has a lock of this name, of another cluster: they need different names, or hosts")
		}
	}
}

// listen makes a socket where nobody listens: one of several.
func listen(dir, locks string, several int) (l *net.UnixListener, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a socket for those that checkpoint themselves: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// One of us looks and removes at a time. It is a file that nobody else can lock: for the
	// directory it would be enough to see it.
	all, err := os.OpenFile(filepath.Join(dir, socketsLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", all.Name(), err)
	}
	for n := range several {
		path := filepath.Join(dir, socketName(locks)+socketEnd)
		if n > 0 {
			path += "." + strconv.Itoa(n+1)
		}
		l, err := self.Listen(path)
		if errors.Is(err, unix.EADDRINUSE) && abandoned(path) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			l, err = self.Listen(path)
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
	}
	return nil, fmt.Errorf("%w: %d of them in %s", unix.EADDRINUSE, several, dir)
}

// abandoned says whether a socket is one of a process that was killed.
func abandoned(path string) bool {
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}
