package job

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A guard is a process beside ours that ends the command when we can't: when we
// have been killed or stopped, or hang, past a deadline that we would have moved.
// It is no child of ours, so nothing that we do to our descendants reaches it. It
// hears from us over a socket, in lines:
//
//	root PID        the command's process
//	file TEXT       what the command inherits, see [Job.Open]
//	mark ID         another mark that the command's processes may have
//	until NANOS     the deadline, on CLOCK_BOOTTIME, which counts sleep
//	done            the end, without harm to anybody
//
// At the deadline, or when the socket closes without "done", it kills the command
// and all its descendants, again and again until there are none. While we exist,
// running or not, that is whatever is below us in the process table; afterwards,
// what kin finds.
//
// Until then it has the inherited file open, and so have we: for whom that file
// means that something lives, the command is not dead before the last of it is.
type Guard struct {
	mu   sync.Mutex
	file *os.File
	kept *os.File // a copy of the inherited file, nil without
	gone chan struct{}
}

const (
	guardName = "job-guard"

	// maxGuardLine bounds a line that a guard reads.
	maxGuardLine = 256
)

// StartGuard starts a guard for the command of a job that is to be made with the
// mark id, a word without commas; see [Mark]. Its name in the process table ends
// with title. It must come before Prepare: afterwards orphans become our children.
func StartGuard(id, title string) (*Guard, error) {
	file, err := Detach(guardName, id, title)
	if err != nil {
		return nil, fmt.Errorf("start a guard: %w", err)
	}
	g := &Guard{file: file, gone: make(chan struct{})}
	go func() {
		_, _ = io.Copy(io.Discard, g.file)
		close(g.gone)
	}()
	return g, nil
}

// Gone is closed when the guard has ended.
func (g *Guard) Gone() <-chan struct{} { return g.gone }

// Watch names the command's process, and the file that it inherits if not nil, of
// which copies stay open until Dismiss. It is called once.
func (g *Guard) Watch(pid int, inherited *os.File) error {
	text := "root " + strconv.Itoa(pid) + "\n"
	if inherited == nil {
		return g.say(text)
	}
	if link := fileLink(inherited); link != "" {
		text = "file " + link + "\n" + text
	}
	fd, err := unix.FcntlInt(inherited.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep what the command inherits: %w", err)
	}
	g.mu.Lock()
	g.kept = os.NewFile(uintptr(fd), inherited.Name())
	err = unix.Sendmsg(int(g.file.Fd()), []byte(text), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
	g.mu.Unlock()
	if err != nil {
		return fmt.Errorf("tell the guard: %w", err)
	}
	return nil
}

// Mark tells of another mark by which processes of the command are known: one that they
// brought with them from an earlier life.
func (g *Guard) Mark(id string) error { return g.say("mark " + id + "\n") }

// Extend moves the deadline, a time on CLOCK_BOOTTIME.
func (g *Guard) Extend(until time.Duration) error {
	return g.say("until " + strconv.FormatInt(int64(until), 10) + "\n")
}

// Dismiss ends the guard. It may be called again.
func (g *Guard) Dismiss() {
	if g.say("done\n") == nil {
		select {
		case <-g.gone:
		case <-time.After(time.Second): // it has been stopped, and reads it later
		}
	}
	_ = g.file.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept != nil {
		_ = g.kept.Close()
	}
}

// Strike has the guard do its work at once, and waits for it.
func (g *Guard) Strike() {
	// Close would wait for the reader, who waits for the guard.
	if unix.Shutdown(int(g.file.Fd()), unix.SHUT_WR) == nil {
		<-g.gone
	}
}

func (g *Guard) say(text string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.file.WriteString(text); err != nil {
		return fmt.Errorf("tell the guard: %w", err)
	}
	return nil
}

// guardMain is the life of the guard.
func guardMain(sock int, id string) int {
	for s := syscall.Signal(1); s < 32; s++ {
		if s != syscall.SIGCHLD && s != syscall.SIGURG {
			signal.Ignore(s)
		}
	}
	_ = os.Chdir("/")
	unix.CloseOnExec(sock)
	if err := unix.SetNonblock(sock, true); err != nil {
		return 1
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return 1
	}
	in, alarm := os.NewFile(uintptr(sock), "socket"), os.NewFile(uintptr(timer), "timer")
	k := &kin{fd: -1, mark: id, master: -1}
	k.serve(sock)
	over := make(chan bool, 2) // whether it ended well
	go func() {
		var ticks [8]byte
		_, _ = io.ReadFull(alarm, ticks[:])
		over <- false
	}()
	var mu sync.Mutex
	go func() { over <- k.listen(in, timer, &mu) }()
	if <-over {
		return 0
	}
	mu.Lock()
	defer mu.Unlock()
	pause := killInterval // the killed need some time to go
	for until := time.Now().Add(killPatience); k.signal(syscall.SIGKILL) > 0; time.Sleep(pause) {
		if time.Now().After(until) {
			pause = time.Second // somebody else's, or in uninterruptible sleep
		}
	}
	return 0
}

// serve finds out who the guarded program is: it has made the socket (SO_PEERCRED,
// unix(7)), and its end is still open after its number was looked up.
func (k *kin) serve(sock int) {
	peer, err := unix.GetsockoptUcred(sock, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return
	}
	fd, err := unix.PidfdOpen(int(peer.Pid), 0)
	if err != nil {
		return
	}
	state := []unix.PollFd{{Fd: int32(sock)}}
	if _, err := unix.Poll(state, 0); err != nil || state[0].Revents&unix.POLLHUP != 0 {
		_ = unix.Close(fd)
		return
	}
	k.master, k.masterPID = fd, int(peer.Pid)
}

// messages reads a socket and keeps the descriptors that come over it.
type messages struct{ syscall.RawConn }

func (m messages) Read(p []byte) (n int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	wait := m.RawConn.Read(func(fd uintptr) bool {
		for {
			// What comes is left open, as long as this process lives.
			n, _, _, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case wait != nil:
		return 0, wait
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// listen follows what the guarded program says, and returns whether it ended well.
func (k *kin) listen(in *os.File, timer int, mu *sync.Mutex) bool {
	conn, err := in.SyscallConn()
	if err != nil {
		return false
	}
	lines := bufio.NewScanner(messages{conn})
	lines.Buffer(nil, maxGuardLine)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		mu.Lock()
		err := k.obey(word, rest, timer)
		mu.Unlock()
		if errors.Is(err, errDone) {
			return true
		}
	}
	return false
}

var errDone = errors.New("done")

func (k *kin) obey(word, rest string, timer int) error {
	switch word {
	case "done":
		return errDone
	case "file":
		k.file = rest
	case "mark":
		k.also = rest
	case "root":
		pid, err := strconv.Atoi(rest)
		if err != nil || pid < 2 {
			return errors.New("no process number")
		}
		if k.fd >= 0 {
			_ = unix.Close(k.fd)
		}
		if k.fd, err = unix.PidfdOpen(pid, 0); err != nil {
			k.fd = -1
			return err
		}
		k.root = pid
	case "until":
		at, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return err
		}
		return unix.TimerfdSettime(timer, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: unix.NsecToTimespec(max(at, 1))}, nil)
	}
	return nil
}
