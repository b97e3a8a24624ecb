package freezer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The wire. A requester and its guard have a pair of UNIX sockets that keep packets
// apart (SOCK_SEQPACKET, unix(7)); who adopts a freeze connects to the guard's socket
// beside the journal. A packet is one message in JSON of at most maxMessage bytes.
//
//	to the guard    {"op":"prepare","order":{...}}  over the first socket
//	                {"op":"freeze","order":{...}}   the same order, once
//	                {"op":"thaw"}
//	                {"op":"extend","timeout":NANOS}  from now; less than 0 for ever
//	                {"op":"state"}
//	                {"op":"renew"}                  from the requester: see Order.Lease
//	from the guard  {"op":"hello"} with a pidfd of the guard, to the requester alone
//	                {"op":"prepared","state":{...}}
//	                {"op":"frozen","report":{...},"state":{...}}
//	                {"op":"state","state":{...}}     also the answer to extend
//	                {"op":"failed","code":"...","error":"...","report":{...}}
//	                {"op":"thawed","code":"...","error":"..."}  at the end, to all
//
// An answer comes for every message but renew, in their order, but thawed may come at any time
// and is the last.
type message struct {
	Op      string        `json:"op"`
	Order   *Order        `json:"order,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Report  *Report       `json:"report,omitempty"`
	State   *State        `json:"state,omitempty"`
	Code    string        `json:"code,omitempty"` // of codes, empty for other errors
	Error   string        `json:"error,omitempty"`
}

const (
	opHello    = "hello"
	opPrepare  = "prepare"
	opPrepared = "prepared"
	opFreeze   = "freeze"
	opFrozen   = "frozen"
	opFailed   = "failed"
	opThaw     = "thaw"
	opThawed   = "thawed"
	opExtend   = "extend"
	opState    = "state"
	opRenew    = "renew"

	maxMessage = 128 << 10
)

// State is what a guard tells of its freeze.
type State struct {
	ID        string        `json:"id"`
	Guard     int           `json:"guard"`     // process number
	Requester int           `json:"requester"` // process number, of one that may have gone
	Detached  bool          `json:"detached"`
	Targets   []Target      `json:"targets"`
	Since     time.Time     `json:"since"`
	Left      time.Duration `json:"left"`              // until the deadline; less than 0 if there is none
	Overdue   time.Duration `json:"overdue,omitempty"` // since the deadline: the guard is stopped, or waits for a disk
	Lease     time.Duration `json:"lease,omitempty"`   // as in the [Order]
	Report    Report        `json:"report"`
}

var errMessage = errors.New("not a message of this version")

func parseMessage(packet []byte) (m message, err error) {
	if len(packet) > maxMessage {
		return m, fmt.Errorf("%w: more than %d bytes", errMessage, maxMessage)
	}
	if err := json.Unmarshal(packet, &m); err != nil {
		return m, fmt.Errorf("%w: %w", errMessage, err)
	}
	if m.Op == opFreeze || m.Op == opPrepare {
		if m.Order == nil {
			return m, fmt.Errorf("%w: no order", errMessage)
		}
		if err := m.Order.Validate(); err != nil {
			return m, err
		}
	}
	return m, nil
}

// fail makes a message of an error.
func fail(op string, err error) message {
	m := message{Op: op, Error: err.Error()}
	for code, known := range codes {
		// What has kept something from being thawed may have a code as well.
		if errors.Is(err, known) && (known == ErrNotThawed || !errors.Is(err, ErrNotThawed)) {
			m.Code = code
		}
	}
	return m
}

// failure is the error that a message tells of; nil if it tells of none.
func (m *message) failure() error {
	known := codes[m.Code]
	switch {
	case m.Error == "" && known == nil:
		return nil
	case known == nil:
		return errors.New(m.Error)
	case m.Error == "":
		return known
	}
	return &remoteError{text: m.Error, kind: known}
}

// remoteError is an error of the guard in its own words.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// packets is a socket for messages. It may be written to from several goroutines, and
// read from one.
type packets struct {
	file *os.File
	buf  []byte // of the reader
}

// newPackets takes over a socket.
func newPackets(fd int) (*packets, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("use a socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*maxMessage)
	return &packets{file: os.NewFile(uintptr(fd), "socket"), buf: make([]byte, maxMessage+1)}, nil
}

// sendTime bounds the wait for a reader who does not read.
const sendTime = time.Second

// send sends a message, with a descriptor if fd is not negative.
func (p *packets) send(m message, fd int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) > maxMessage {
		return fmt.Errorf("%w: the message has more than %d bytes", ErrOrder, maxMessage)
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	_ = p.file.SetWriteDeadline(time.Now().Add(sendTime))
	waited := conn.Write(func(s uintptr) bool {
		for {
			err = unix.Sendmsg(int(s), text, rights, nil, unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	return errors.Join(waited, err)
}

// offer sends a message if there is room for it now.
func (p *packets) offer(m message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	// Write would wait, and look at the deadline of the last send.
	closed := conn.Control(func(s uintptr) { err = unix.Sendmsg(int(s), text, nil, nil, unix.MSG_NOSIGNAL) })
	return errors.Join(closed, err)
}

// receive waits for a message, and for the descriptor that came with it, -1 if none
// did. The error is errClosed when the other end was closed.
func (p *packets) receive() (m message, fd int, err error) {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return m, -1, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	reset := false
	waited := conn.Read(func(s uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(s), p.buf, oob, unix.MSG_CMSG_CLOEXEC)
			switch {
			case err == unix.EINTR:
			case err == unix.ECONNRESET && !reset:
				// The other end was closed before it had read all of ours. The kernel says so once, and
				// before what the other end had said last.
				reset = true
			default:
				return err != unix.EAGAIN
			}
		}
	})
	fd = received(oob[:oobn])
	if err = errors.Join(waited, err); err == nil && n == 0 || errors.Is(err, unix.ECONNRESET) {
		err = errClosed
	}
	if err == nil {
		m, err = parseMessage(p.buf[:n])
	}
	return m, fd, err
}

var errClosed = errors.New("the other end was closed")

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

func (p *packets) close() { _ = p.file.Close() }
