package transport

import (
	"errors"
	"io"
	"strconv"
)

// ReplyKind says which fields of a Reply count.
type ReplyKind uint8

const (
	ReplyStatus   ReplyKind = iota + 1 // Status: a whole block
	ReplyWaiting                       // Owner; in proto 2 a ReplyPlace follows
	ReplyPlace                         // Place
	ReplyObtained                      // the wait that ReplyWaiting began is over; the ReplyStatus follows
	ReplyBroke                         // Owner
	ReplyCheck                         // Lock, Host, PID, DeadPID
	ReplyLock                          // Lock, Owner: one line of LOCK_LIST
	ReplyVersion                       // Text: version and start, as sent
	ReplyProto                         // Text: the name of the node
	ReplyPong                          //
	ReplyHold                          // Text: JSON
	ReplyWaiter                        // Text: JSON
	ReplyLost                          // Fence, Cause, By
	ReplyMoved                         // Addrs
	ReplyEcho                          // Text
	ReplyAnchored                      // Fence
	ReplyBlank                         // a blank line: two end a LOCK_LIST, one ends HOLDS
)

// Reply is one line of a reply, or a status block.
type Reply struct {
	Kind   ReplyKind
	Status Status

	Lock    string
	Owner   string
	Host    string
	PID     int32
	DeadPID bool // the server understands DEAD_PID
	Place   int
	Fence   uint64
	Cause   string
	By      string
	Addrs   []string
	Text    string
}

// maxReplyWords bounds the lock names of a block and the addresses of a move.
const maxReplyWords = 1024

// ErrReply is returned for a reply that breaks a bound or contradicts itself.
// Nothing more can be read from the connection.
var ErrReply = errors.New("the server's reply makes no sense")

// ReplyReader yields the replies of one connection. One goroutine at a time may
// use it.
//
// The blank lines that end a status block and a version belong to them and are
// not reported. Blank lines elsewhere are, as [ReplyBlank].
type ReplyReader struct {
	in      lines
	open    bool // a block has begun
	block   Status
	swallow bool // a blank line that comes next belongs to what was reported last
}

// NewReplyReader reads replies from src.
func NewReplyReader(src io.Reader) *ReplyReader {
	return &ReplyReader{in: lines{src: src}}
}

// Next returns the next reply. It fails with io.EOF when the stream ends
// between replies, with io.ErrUnexpectedEOF when it ends within one, with
// ErrReply, and otherwise with the error of the source, after which it may be
// called again.
func (r *ReplyReader) Next() (Reply, error) {
	for {
		for {
			line, ok := r.in.next()
			if !ok {
				break
			}
			if reply, ok, err := r.take(line); err != nil || ok {
				return reply, err
			}
		}
		switch err := r.in.fill(MaxReplyLine); {
		case err == nil:
		case errors.As(err, new(*Fault)):
			return Reply{}, ErrReply
		case err == io.EOF && (r.open || r.in.buffered() > 0):
			return Reply{}, io.ErrUnexpectedEOF
		default:
			return Reply{}, err
		}
	}
}

// Buffered is the number of bytes read and not yet turned into replies.
func (r *ReplyReader) Buffered() int { return r.in.buffered() }

func (r *ReplyReader) take(line []byte) (reply Reply, ok bool, err error) {
	if len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	if len(line) == 0 {
		return r.takeBlank()
	}
	r.swallow = false
	w, rest := word(line)
	switch string(w) {
	case "owner":
		r.open = true
		r.block.Owner = firstWord(rest)
		return Reply{}, false, nil
	case "locked":
		r.open = true
		r.block.Locked = truth(rest)
		return Reply{}, false, nil
	case "lockname":
		r.open = true
		if len(r.block.Locks) == maxReplyWords {
			return Reply{}, false, ErrReply
		}
		r.block.Locks = append(r.block.Locks, firstWord(rest))
		return Reply{}, false, nil
	case "fence":
		r.open = true
		r.block.Fence, err = replyNumber(rest, 64)
		return Reply{}, false, err
	case "error":
		r.open = true
		w, text := word(rest)
		r.block.Fault = &Fault{Word: string(w), Text: string(text)}
		return Reply{}, false, nil
	}
	return r.takeLine(string(w), rest)
}

// takeLine reads a line that stands for itself. Lines of a kind not known here
// are skipped.
func (r *ReplyReader) takeLine(key string, rest []byte) (reply Reply, ok bool, err error) {
	switch key {
	case "print_waiting":
		return Reply{Kind: ReplyWaiting, Owner: firstWord(rest)}, true, nil
	case "print_obtained":
		r.block.Obtained = true
		return Reply{Kind: ReplyObtained}, true, nil
	case "print_broke":
		return Reply{Kind: ReplyBroke, Owner: firstWord(rest)}, true, nil
	case "place":
		n, err := replyNumber(rest, 31)
		return Reply{Kind: ReplyPlace, Place: int(n)}, err == nil, err
	case "autounlock_check":
		reply, err = takeCheck(rest)
		return reply, err == nil, err
	case "lock":
		lock, rest := word(rest)
		return Reply{Kind: ReplyLock, Lock: string(lock), Owner: firstWord(rest)}, true, nil
	case "version":
		r.swallow = true
		return Reply{Kind: ReplyVersion, Text: string(rest)}, true, nil
	case "proto":
		_, name := word(rest)
		return Reply{Kind: ReplyProto, Text: firstWord(name)}, true, nil
	case "pong":
		return Reply{Kind: ReplyPong}, true, nil
	case "anchored":
		n, err := replyNumber(rest, 64)
		return Reply{Kind: ReplyAnchored, Fence: n}, err == nil, err
	case "hold":
		return Reply{Kind: ReplyHold, Text: string(rest)}, true, nil
	case "waiter":
		return Reply{Kind: ReplyWaiter, Text: string(rest)}, true, nil
	case "lost":
		f, rest := word(rest)
		cause, by := word(rest)
		n, err := replyNumber(f, 64)
		return Reply{Kind: ReplyLost, Fence: n, Cause: string(cause), By: firstWord(by)}, err == nil, err
	case "moved":
		reply = Reply{Kind: ReplyMoved}
		for len(rest) > 0 && len(reply.Addrs) < maxReplyWords {
			var a []byte
			a, rest = word(rest)
			reply.Addrs = append(reply.Addrs, string(a))
		}
		return reply, true, nil
	case "ECHO":
		return Reply{Kind: ReplyEcho, Text: string(rest)}, true, nil
	}
	return Reply{}, false, nil
}

func (r *ReplyReader) takeBlank() (Reply, bool, error) {
	switch {
	case r.open:
		reply := Reply{Kind: ReplyStatus, Status: r.block}
		r.open, r.block, r.swallow = false, Status{}, true
		return reply, true, nil
	case r.swallow:
		r.swallow = false
		return Reply{}, false, nil
	}
	return Reply{Kind: ReplyBlank}, true, nil
}

func takeCheck(rest []byte) (Reply, error) {
	lock, rest := word(rest)
	host, rest := word(rest)
	p, rest := word(rest)
	pid, err := replyNumber(p, 31)
	return Reply{
		Kind: ReplyCheck, Lock: string(lock), Host: string(host), PID: int32(pid),
		DeadPID: truth(rest),
	}, err
}

func replyNumber(v []byte, bits int) (uint64, error) {
	n, err := strconv.ParseUint(firstWord(v), 10, bits)
	if err != nil {
		return 0, ErrReply
	}
	return n, nil
}
