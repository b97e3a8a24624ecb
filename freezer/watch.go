package freezer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watch thaws what guards leave that are killed, by their journals. It learns of new
// guards by inotify(7), for the directory may be used by others, and of their end
// by pidfds. A guard that somebody has stopped is continued when its time is up.
type watch struct {
	dir     string
	log     func(string, ...any)
	inotify *os.File

	mu      sync.Mutex
	guards  map[string]*os.File // pidfds, by the freeze's id
	unseen  bool                // there are others, in pid namespaces that cannot be seen from ours
	closing chan struct{}
	once    sync.Once
	work    sync.WaitGroup
}

// watchPause is the time between two tries to thaw what could not be thawed.
const watchPause = time.Second

// newWatch thaws what has been left before, and begins.
func newWatch(dir string, log func(string, ...any)) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watch{
		dir: dir, log: log, inotify: os.NewFile(uintptr(fd), "inotify"),
		guards: map[string]*os.File{}, closing: make(chan struct{}),
	}
	if err := w.follow(); err != nil {
		_ = w.inotify.Close()
		return nil, err
	}
	w.work.Go(w.listen)
	w.work.Go(w.wake)
	return w, nil
}

// wake continues the guards that somebody has stopped, and whose time is up.
func (w *watch) wake() {
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for {
		select {
		case <-w.closing:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		none, unseen := len(w.guards) == 0, w.unseen
		w.mu.Unlock()
		if unseen { // nothing tells of their end
			if err := w.scan(); err != nil {
				w.log("cannot watch over the guards of this host", "error", err)
			}
		}
		if none {
			continue
		}
		found, err := records(w.dir)
		if err != nil {
			continue // listen tells of it
		}
		now := boottime()
		w.mu.Lock()
		for i := range found {
			pidfd := w.guards[found[i].ID]
			if pidfd == nil || found[i].Until == 0 || found[i].Until > now {
				continue
			}
			if conn, err := pidfd.SyscallConn(); err == nil {
				_ = conn.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGCONT, nil, 0) })
			}
		}
		w.mu.Unlock()
	}
}

// follow asks for news of the directory, and catches up with it.
func (w *watch) follow() error {
	dir, err := openDir(w.dir)
	if err != nil {
		return err
	}
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	cerr := conn.Control(func(fd uintptr) {
		_, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_CREATE|unix.IN_ONLYDIR)
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	return w.scan()
}

// listen lasts until close.
func (w *watch) listen() {
	var buf [16 << 10]byte
	for {
		n, err := w.inotify.Read(buf[:])
		if err != nil {
			return // closed
		}
		// What has happened can be seen in the directory, unless that itself has gone.
		gone := false
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			e := buf[at:] // wd, mask, cookie and len of struct inotify_event
			gone = gone || binary.NativeEndian.Uint32(e[4:])&unix.IN_IGNORED != 0
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(e[12:]))
		}
		if gone {
			err = w.follow()
		} else {
			err = w.scan()
		}
		if err != nil {
			w.log("cannot watch over the guards of this host", "error", err)
		}
	}
}

// scan looks for guards that are new, and then for the work of those that have died,
// before they were found or since.
func (w *watch) scan() error {
	return errors.Join(w.find(), w.recover())
}

// find gets hold of all living guards.
func (w *watch) find() error {
	found, err := records(w.dir)
	if err != nil {
		return err
	}
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.close()
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.closing:
		return nil
	default:
	}
	w.unseen = false
	for i := range found {
		r := &found[i]
		if w.guards[r.ID] != nil {
			continue
		}
		if r.unseen {
			w.unseen = true
			continue
		}
		fd, err := unix.PidfdOpen(int(r.Guard.pid), unix.PIDFD_NONBLOCK)
		if err != nil {
			continue // it has died
		}
		if s, err := proc.stat(r.Guard.pid); err != nil || s.start != r.Guard.start {
			_ = unix.Close(fd)
			continue
		}
		pidfd := os.NewFile(uintptr(fd), "guard")
		w.guards[r.ID] = pidfd
		w.work.Go(func() { w.await(r.ID, pidfd) })
		if s := r.state(); s.Detached && !s.Since.IsZero() {
			w.log("watching over a freeze", "id", s.ID, "guard", s.Guard, "frozen", s.Report.String(), "left", s.Left)
		}
	}
	return nil
}

// await waits for the end of a guard, and does what it has left undone.
func (w *watch) await(id string, pidfd *os.File) {
	conn, err := pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool {
			polls := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(polls, 0)
			return n > 0 && err == nil
		})
	}
	w.mu.Lock()
	delete(w.guards, id)
	w.mu.Unlock()
	_ = pidfd.Close()
	for err == nil {
		if w.recover() == nil {
			return
		}
		select {
		case <-w.closing:
			return
		case <-time.After(watchPause):
		}
	}
}

// recover does what killed guards have left undone, and tells of it.
func (w *watch) recover() error {
	done, err := Recover(w.dir)
	for _, r := range done {
		if r.Processes+r.Cgroups+r.FileSystems > 0 {
			w.log("thawed what a killed guard has left", "id", r.ID, "guard", r.Guard, "thawed", r.String())
		}
	}
	if err != nil {
		w.log("cannot thaw what a killed guard has left", "error", err)
	}
	return err
}

// close ends the watch, and leaves the guards alone.
func (w *watch) close() {
	w.once.Do(func() { close(w.closing) })
	_ = w.inotify.Close()
	w.mu.Lock()
	for _, f := range w.guards {
		_ = f.SetReadDeadline(time.Now())
	}
	w.mu.Unlock()
	w.work.Wait()
}
