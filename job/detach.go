package job

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const launchName = "job-launch"

// Detach starts this program under another name, in a session of its own, as
// nobody's child and with no descriptor of ours but one end of a socket, whose
// number is its first argument. The other end is returned. It is for before
// [Prepare]: afterwards orphans become our children.
func Detach(name string, args ...string) (*os.File, error) {
	ours, sock, err := newGate()
	if err != nil {
		return nil, err
	}
	argv := append([]string{launchName, strconv.Itoa(sock), name, strconv.Itoa(sock)}, args...)
	pid, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	_ = unix.Close(sock)
	if err == nil {
		err = launched(pid)
	}
	if err != nil {
		_ = ours.file.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return ours.file, nil
}

// launched waits for the launcher.
func launched(pid int) error {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if code := exitCode(status); code != 0 {
		return fmt.Errorf("its launcher ended with status %d", code)
	}
	return nil
}

// launch is what the launcher does: it has a child, and goes.
func launch(sock int, argv []string) int {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 1
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 1
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 && fd != sock {
			unix.CloseOnExec(fd)
		}
	}
	_, err = syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1
	}
	return 0
}

// ackTime bounds the wait for who was started by [Detach].
const ackTime = 10 * time.Second

// Send writes to the other end of a socket that [Detach] made, waits for [Acknowledge]
// there, and closes this one. A file that is not nil goes along.
func Send(socket *os.File, text []byte, file *os.File) error {
	defer socket.Close()
	if file != nil && len(text) > 0 {
		if err := unix.Sendmsg(int(socket.Fd()), text[:1], unix.UnixRights(int(file.Fd())), nil, unix.MSG_NOSIGNAL); err != nil {
			return err
		}
		text = text[1:]
	}
	if _, err := socket.Write(text); err != nil {
		return err
	}
	fd := int(socket.Fd())
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return err
	}
	late := unix.NsecToTimeval(ackTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late); err != nil {
		return err
	}
	for {
		switch n, err := unix.Read(fd, make([]byte, 1)); {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return fmt.Errorf("no answer within %v", ackTime)
		case err != nil:
			return err
		case n == 0:
			return errors.New("it has ended")
		default:
			return nil
		}
	}
}

// Acknowledge says to [Send] that what was received is being taken care of, and closes
// the socket.
func Acknowledge(socket int) {
	_, _ = unix.Write(socket, []byte{0}) // who was there to read it may have been killed
	_ = unix.Close(socket)
}

// Receive reads what [Send] has sent, to its end, and at most limit bytes.
func Receive(socket, limit int) (text []byte, file *os.File, err error) {
	buf := make([]byte, 64<<10)
	oob := make([]byte, unix.CmsgSpace(4))
	for len(text) <= limit {
		n, oobn, _, _, err := unix.Recvmsg(socket, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, file, err
		}
		if fd := received(oob[:oobn]); fd >= 0 {
			file = os.NewFile(uintptr(fd), "received")
		}
		if n == 0 {
			return text, file, nil
		}
		text = append(text, buf[:n]...)
	}
	return nil, file, fmt.Errorf("more than %d bytes", limit)
}

// received is the descriptor of a control message, -1 if there is none.
func received(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1
	}
	return fds[0]
}
