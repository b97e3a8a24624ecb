package self

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// caller is a process that is connected, or was.
type caller struct {
	conn  *net.UnixConn
	in    *bufio.Reader // of it
	pid   int
	uid   int
	gid   int
	root  int              // of its job
	user  *checkpoint.User // nil for root
	pidfd int              // -1 for none
	asker checkpoint.Asker
	pipe  uint64 // the number of its inode
}

// soPeerPIDFD is SO_PEERPIDFD of the kernel since 6.5.
const soPeerPIDFD = 77

// identify finds out who is connected, and whether they may ask.
func (c *caller) identify(root func(int) int) error {
	c.pidfd = -1
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var groups []int
	var inner error
	err = raw.Control(func(fd uintptr) {
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		if groups, inner = peerGroups(int(fd)); inner != nil {
			return
		}
		pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, soPeerPIDFD)
		if errors.Is(err, unix.ENOPROTOOPT) {
			// It is connected still, or we notice that it has ended, and so it cannot be
			// another of the same number.
			pidfd, err = unix.PidfdOpen(int(cred.Pid), 0)
		}
		if err != nil {
			inner = err
			return
		}
		c.pidfd = pidfd
	})
	if err = errors.Join(err, inner); err != nil {
		return fmt.Errorf("look who is connected: %w", err)
	}
	c.pid, c.uid, c.gid = int(cred.Pid), int(cred.Uid), int(cred.Gid)
	if c.pid <= 0 {
		return fmt.Errorf("the caller is of another pid namespace: %w", syscall.EPERM)
	}
	if c.uid != 0 {
		c.user = &checkpoint.User{UID: c.uid, GID: c.gid, Groups: groups}
	}
	return c.belongs(root)
}

// peerGroups are the other groups of who is connected (SO_PEERGROUPS of socket(7)).
func peerGroups(fd int) ([]int, error) {
	buf := make([]byte, 4*65536) // NGROUPS_MAX
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
	}
	var groups []int
	for i := 0; i+4 <= int(size); i += 4 {
		groups = append(groups, int(binary.NativeEndian.Uint32(buf[i:])))
	}
	return groups, nil
}

// belongs finds the job that the caller is of.
func (c *caller) belongs(root func(int) int) (err error) {
	if root == nil {
		c.root, err = unix.Getsid(c.pid)
	} else {
		c.root = root(c.pid)
	}
	if err != nil || c.root <= 1 || !descends(c.pid, c.root) {
		return fmt.Errorf("process %d is of no job that is checkpointed here: %w", c.pid, syscall.EPERM)
	}
	if c.user == nil {
		return nil
	}
	// All of the job is looked at when it stands still. Its eldest process being another's
	// is enough not to disturb it.
	if uid, err := ownerOf(c.root); err != nil || uid != c.uid {
		return fmt.Errorf("user %d may not have process %d checkpointed: %w", c.uid, c.root, syscall.EPERM)
	}
	return nil
}

// ownerOf is the effective user of a process.
func ownerOf(pid int) (uid int, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\nUid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	ids := strings.Fields(line)
	if len(ids) != 4 {
		return 0, errors.New("no users in proc_pid_status(5)")
	}
	return strconv.Atoi(ids[1])
}

// maxDepth bounds a walk up a process tree that changes meanwhile.
const maxDepth = 1 << 16

// descends says whether a process descends from another, or is it.
func descends(pid, ancestor int) bool {
	for range maxDepth {
		if pid == ancestor {
			return true
		}
		if pid <= 1 {
			return false
		}
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(fields) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			return false
		}
	}
	return false
}

// request reads what the caller wants.
func (c *caller) request() (r request, err error) {
	line, err := readLine(c.in)
	if err != nil {
		return r, fmt.Errorf("read the request: %w", err)
	}
	return parseRequest(line)
}

// pin makes sure of the pipe.
func (c *caller) pin(pipe int) error {
	c.asker = checkpoint.Asker{PID: c.pid, Pipe: pipe}
	inode, err := c.inode()
	c.pipe = inode
	return err
}

// inode is the number of the caller's pipe.
func (c *caller) inode() (uint64, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", c.asker.PID, c.asker.Pipe)
	link, err := os.Readlink(path)
	if err != nil {
		return 0, fmt.Errorf("look for the pipe: %w", err)
	}
	var n uint64
	if k, err := fmt.Sscanf(link, "pipe:[%d]", &n); k != 1 || err != nil {
		return 0, fmt.Errorf("descriptor %d is no pipe: %w", c.asker.Pipe, syscall.EBADF)
	}
	return n, nil
}

// hangUp waits for the caller to close the connection.
func (c *caller) hangUp() error {
	_, err := io.WriteString(c.conn, accepted)
	if err == nil {
		var n int
		if n, err = c.in.Read(make([]byte, 1)); n > 0 {
			err = fmt.Errorf("it says more than one line: %w", syscall.EINVAL)
		}
	}
	_ = c.conn.Close()
	if err == io.EOF || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the connection was not closed, and could not be in a checkpoint: %w", syscall.ETIMEDOUT)
	}
	return fmt.Errorf("wait for the end of the connection: %w", err)
}

// still says why the caller does not wait for a checkpoint any more.
func (c *caller) still() error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}, 0)
	if err != nil || n > 0 {
		return fmt.Errorf("process %d, which asked, has ended: %w", c.pid, syscall.ESRCH)
	}
	if inode, err := c.inode(); err != nil || inode != c.pipe {
		return fmt.Errorf("process %d, which asked, waits no more: %w", c.pid, syscall.EPIPE)
	}
	if !descends(c.pid, c.root) {
		return fmt.Errorf("process %d, which asked, is not of the job any more: %w", c.pid, syscall.EPERM)
	}
	return nil
}

// tell writes into the pipe.
func (c *caller) tell(line string) error {
	if err := c.still(); err != nil {
		return err
	}
	return c.asker.Tell(line)
}

func (c *caller) close() {
	_ = c.conn.Close()
	if c.pidfd >= 0 {
		_ = unix.Close(c.pidfd)
	}
}
