package transport

import (
	"strconv"
	"time"
)

// Status is the block that answers LOCK, UNLOCK, BREAK_LOCK, STATUS, and in
// proto 2 RENEW and CANCEL.
type Status struct {
	Obtained bool   // the connection has been told print_waiting before
	Owner    string // who holds the first busy lock; the user itself if it holds one
	Locked   bool
	Locks    []string // when Locked: what is held
	Fence    uint64   // when Locked, proto 2
	Fault    *Fault
}

// Append writes the block for a client that speaks proto. An IPC::Locker
// client gets one lock name, which is all it reads, and of an error its word.
func (s Status) Append(dst []byte, proto int) []byte {
	if s.Obtained {
		dst = append(dst, "print_obtained\n"...)
	}
	dst = appendLine(dst, "owner", s.Owner)
	dst = appendBool(dst, "locked", s.Locked)
	if s.Locked {
		for i, name := range s.Locks {
			if i > 0 && proto < 2 {
				break
			}
			dst = appendLine(dst, "lockname", name)
		}
		if proto >= 2 {
			dst = append(dst, "fence "...)
			dst = strconv.AppendUint(dst, s.Fence, 10)
			dst = append(dst, '\n')
		}
	}
	if s.Fault != nil {
		dst = append(dst, "error "...)
		dst = append(dst, s.Fault.Word...)
		if proto >= 2 && s.Fault.Text != "" {
			dst = append(dst, ' ')
			dst = appendText(dst, s.Fault.Text)
		}
		dst = append(dst, '\n')
	}
	return append(dst, "\n\n"...)
}

// AppendWaiting says that a LOCK is queued behind owner, and with a place other
// than 0 how many requests are before it, itself included; places are for proto
// 2 only.
func AppendWaiting(dst []byte, owner string, place int) []byte {
	dst = appendLine(dst, "print_waiting", owner)
	if place > 0 {
		dst = append(dst, "place "...)
		dst = strconv.AppendInt(dst, int64(place), 10)
		dst = append(dst, '\n')
	}
	return dst
}

// AppendBroke says whose hold a BREAK_LOCK has ended.
func AppendBroke(dst []byte, owner string) []byte {
	return appendLine(dst, "print_broke", owner)
}

// AppendCheck asks the client to look whether the holder of lock lives. The 2
// says that the server understands DEAD_PID.
func AppendCheck(dst []byte, lock, host string, pid int32) []byte {
	dst = append(dst, "autounlock_check "...)
	dst = append(dst, lock...)
	dst = append(dst, ' ')
	dst = append(dst, host...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(pid), 10)
	return append(dst, " 2\n"...)
}

// AppendLock writes one line of a LOCK_LIST; AppendListEnd follows the last.
func AppendLock(dst []byte, name, owner string) []byte {
	dst = append(dst, "lock "...)
	dst = append(dst, name...)
	dst = append(dst, ' ')
	dst = append(dst, owner...)
	return append(dst, '\n')
}

// AppendListEnd ends a LOCK_LIST.
func AppendListEnd(dst []byte) []byte { return append(dst, "\n\n"...) }

// AppendVersion answers VERSION.
func AppendVersion(dst []byte, version string, started time.Time) []byte {
	dst = append(dst, "version "...)
	dst = append(dst, version...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, started.Unix(), 10)
	return append(dst, "\n\n"...)
}

// AppendProto answers "proto 2".
func AppendProto(dst []byte, node string) []byte { return appendLine(dst, "proto 2", node) }

// AppendPong answers PING.
func AppendPong(dst []byte) []byte { return append(dst, "pong\n"...) }

// AppendAnchored answers ANCHOR.
func AppendAnchored(dst []byte, fence uint64) []byte {
	dst = append(dst, "anchored "...)
	dst = strconv.AppendUint(dst, fence, 10)
	return append(dst, '\n')
}

// AppendHold writes a hold as one line of HOLDS; json has no newline.
func AppendHold(dst, json []byte) []byte { return appendJSON(dst, "hold ", json) }

// AppendWaiter writes a waiter as one line of HOLDS; json has no newline.
func AppendWaiter(dst, json []byte) []byte { return appendJSON(dst, "waiter ", json) }

// AppendHoldsEnd ends the answer to HOLDS.
func AppendHoldsEnd(dst []byte) []byte { return append(dst, '\n') }

// AppendLost says that a hold has ended, why, and if it was broken by whom.
func AppendLost(dst []byte, fence uint64, cause, by string) []byte {
	dst = append(dst, "lost "...)
	dst = strconv.AppendUint(dst, fence, 10)
	dst = append(dst, ' ')
	dst = append(dst, cause...)
	if by != "" {
		dst = append(dst, ' ')
		dst = append(dst, by...)
	}
	return append(dst, '\n')
}

// AppendMoved says that the server is stopping, and where else to go.
func AppendMoved(dst []byte, addrs []string) []byte {
	dst = append(dst, "moved"...)
	for _, a := range addrs {
		dst = append(dst, ' ')
		dst = append(dst, a...)
	}
	return append(dst, '\n')
}

func appendJSON(dst []byte, key string, json []byte) []byte {
	dst = append(dst, key...)
	dst = append(dst, json...)
	return append(dst, '\n')
}

// appendText keeps a text on its line.
func appendText(dst []byte, text string) []byte {
	for i := range len(text) {
		c := text[i]
		if c < ' ' {
			c = ' '
		}
		dst = append(dst, c)
	}
	return dst
}
