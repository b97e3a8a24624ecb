package self

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// Options says whose requests a server answers, and how.
type Options struct {
	// Root is the eldest process of the job that a process is of, and 0 if it is of
	// none; nil is the leader of its session.
	Root func(pid int) int
	// Order is what is the same in all checkpoints, as Locks, TCP, Compress and CRIU; nil
	// for nothing. Target, File, Writer, Signal, User and Asker are the server's.
	Order func() checkpoint.Order
	// Checkpoint, if not nil, is called in place of [checkpoint.Checkpoint], and may change
	// what is done: where to, and whether the job is killed.
	Checkpoint func(context.Context, Event, checkpoint.Order) (*checkpoint.Report, error)
	// Patience is how long a caller may take to say what it wants, and to close the
	// connection; 0 is 10 s.
	Patience time.Duration
	// Done, if not nil, is called after each request, from one goroutine at a time.
	Done func(Event)
}

// Event is a request that was answered.
type Event struct {
	PID    int    // who asked
	UID    int    //
	Root   int    // of the job; 0 if the caller was refused
	Path   string // "" if the caller did not say
	Mode   Mode
	Report *checkpoint.Report // nil with an error
	Err    error
}

// maxCallers is how many may be connected at a time. Others wait.
const maxCallers = 16

// refusalTime is for a line that a socket's buffer has room for.
const refusalTime = time.Second

const defaultPatience = 10 * time.Second

// Listen makes a socket at path that everybody may connect to who may reach it; the server
// looks who it is. It is removed when it is closed.
func Listen(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// server answers requests.
type server struct {
	Options
	one chan struct{} // has something while a job is checkpointed
	say sync.Mutex    // of Done
}

// Serve answers requests until ctx ends, and closes the listener. Checkpoints that are not
// finished then are given up. It returns when nothing of it runs any more; an error is that
// of the listener.
func Serve(ctx context.Context, l *net.UnixListener, o Options) error {
	s := &server{Options: o, one: make(chan struct{}, 1)}
	if s.Patience == 0 {
		s.Patience = defaultPatience
	}
	var callers sync.WaitGroup
	defer callers.Wait()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	places := make(chan struct{}, maxCallers)
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for programs that want to be checkpointed: %w", err)
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return nil
		}
		callers.Go(func() {
			defer func() { <-places }()
			e := s.answer(work, conn)
			if s.Done != nil {
				s.say.Lock()
				defer s.say.Unlock()
				s.Done(e)
			}
		})
	}
}

// answer has one caller from its connection to the word in its pipe.
func (s *server) answer(ctx context.Context, conn *net.UnixConn) (e Event) {
	_ = conn.SetDeadline(time.Now().Add(s.Patience))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := &caller{conn: conn, in: lineReader(conn)}
	defer c.close()
	err := c.identify(s.Root)
	e.PID, e.UID = c.pid, c.uid
	var r request
	if err == nil {
		e.Root = c.root
		r, err = c.request()
		e.Path, e.Mode = r.path, Mode(r.exit)
	}
	if err == nil {
		err = c.pin(r.pipe)
	}
	if err != nil {
		e.Err = err
		_ = conn.SetDeadline(time.Now().Add(refusalTime)) // the other may be over
		_, _ = io.WriteString(conn, refusal(err))
		return e
	}
	err = c.hangUp()
	if err == nil {
		e.Report, err = s.checkpoint(ctx, c, r, e)
	}
	line := checkpoint.Running
	if err != nil {
		e.Err = err
		line = refusal(err)
	}
	if r.exit && err == nil {
		return e // there is nobody left to tell
	}
	if told := c.tell(line); told != nil && !errors.Is(told, os.ErrNotExist) && !errors.Is(told, syscall.EPIPE) && !errors.Is(told, syscall.ESRCH) {
		e.Err = errors.Join(e.Err, fmt.Errorf("tell process %d: %w", c.pid, told))
	}
	return e
}

// checkpoint does what was asked for.
func (s *server) checkpoint(ctx context.Context, c *caller, r request, e Event) (*checkpoint.Report, error) {
	select {
	case s.one <- struct{}{}:
		defer func() { <-s.one }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := c.still(); err != nil {
		return nil, err
	}
	var o checkpoint.Order
	if s.Order != nil {
		o = s.Order()
	}
	o.Target, o.File, o.Writer, o.User = checkpoint.Tree(c.root), filepath.Clean(r.path), nil, c.user
	o.Asker = &checkpoint.Asker{PID: c.pid, Pipe: r.pipe}
	o.Signal = 0
	if r.exit {
		o.Signal = syscall.SIGKILL
	}
	if s.Checkpoint != nil {
		return s.Checkpoint(ctx, e, o)
	}
	return checkpoint.Checkpoint(ctx, o)
}
