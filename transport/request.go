package transport

import (
	"encoding/hex"
	"strconv"
	"time"
)

// Verb says what a request asks for.
type Verb uint8

// The verbs of IPC::Locker, then those of proto 2.
const (
	VerbNone Verb = iota // no verb: what a ping sends
	VerbLock
	VerbUnlock
	VerbBreak
	VerbStatus
	VerbList
	VerbDeadPID
	VerbVersion
	VerbRestart
	VerbEOF
	VerbProto // "proto 2": the server says its name

	VerbRenew
	VerbPing
	VerbCancel
	VerbHolds
	VerbAnchor
)

var verbNames = [...]string{
	VerbNone:    "",
	VerbLock:    "LOCK",
	VerbUnlock:  "UNLOCK",
	VerbBreak:   "BREAK_LOCK",
	VerbStatus:  "STATUS",
	VerbList:    "LOCK_LIST",
	VerbDeadPID: "DEAD_PID",
	VerbVersion: "VERSION",
	VerbRestart: "RESTART",
	VerbEOF:     "EOF",
	VerbProto:   "proto",
	VerbRenew:   "RENEW",
	VerbPing:    "PING",
	VerbCancel:  "CANCEL",
	VerbHolds:   "HOLDS",
	VerbAnchor:  "ANCHOR",
}

// String is the verb as it stands on the wire.
func (v Verb) String() string {
	if int(v) < len(verbNames) {
		return verbNames[v]
	}
	return "verb " + strconv.Itoa(int(v))
}

// Choice says how many of the named locks a LOCK wants.
type Choice uint8

const (
	ChoiceAny Choice = iota // the first free one
	ChoiceAll               // all at once
)

// Mode says how a lock is shared.
type Mode uint8

const (
	ModeExclusive Mode = iota
	ModeShared
	ModeSlots // at most Request.Slots holders
)

// Request is a verb with the settings in force when it was given. Its slices
// are never changed.
type Request struct {
	Verb  Verb
	Fault *Fault // a setting that the verb depends on makes no sense; nil if all do

	User       string
	Locks      []string // each name once, in the order given
	LocksGen   uint64   // counts the lists of this connection: see Reader.Narrow
	Block      bool
	Timeout    time.Duration // longest time to hold; 0 = no limit
	Autounlock bool
	Host       string
	PID        int32 // 0 = not known

	Proto  int // 1, or 2 once the client has said so; the fields below are zero before
	ID     [16]byte
	Choice Choice
	Mode   Mode
	Slots  uint32
	Lease  time.Duration // 0 = none
	Start  uint64        // ticks since boot; 0 = not known
	Boot   string
	Wait   time.Duration // longest wait of a LOCK; 0 = for ever
	Fence  uint64        // 0 = none

	DeadHost string // VerbDeadPID: the process that has ended
	DeadPID  int32
}

// Append writes the request as a client sends it, settings first, in the bytes
// of IPC::Locker 1.48 and later. With last, the server closes the connection
// once it has answered. With Proto 2, settings that could differ from those of
// an earlier request on the connection are all written, defaults too.
//
// The caller answers for the values: no white space in names, a user, hosts.
func (q *Request) Append(dst []byte, last bool) []byte {
	if q.Proto >= 2 {
		dst = append(dst, "proto 2\n"...)
	}
	dst = q.AppendAgain(dst)
	if last {
		dst = append(dst, "EOF\n\n"...)
	}
	return dst
}

// AppendAgain is Append for a further request on a connection that has said
// what protocol it speaks.
func (q *Request) AppendAgain(dst []byte) []byte {
	dst = appendLine(dst, "user", q.User)
	dst = append(dst, "locks"...)
	for _, name := range q.Locks {
		dst = append(dst, ' ')
		dst = append(dst, name...)
	}
	dst = append(dst, '\n')
	switch q.Verb {
	case VerbUnlock:
	case VerbAnchor:
		dst = q.appendProcess(dst)
	default:
		dst = q.appendLockSettings(dst)
	}
	if q.Proto >= 2 {
		dst = q.appendProto2(dst)
	}
	dst = append(dst, q.Verb.String()...)
	if q.Verb == VerbDeadPID {
		dst = append(dst, ' ')
		dst = append(dst, q.DeadHost...)
		dst = append(dst, ' ')
		dst = strconv.AppendInt(dst, int64(q.DeadPID), 10)
	}
	return append(dst, "\n\n"...)
}

func (q *Request) appendLockSettings(dst []byte) []byte {
	dst = appendBool(dst, "block", q.Block)
	dst = appendSeconds(dst, "timeout", q.Timeout)
	if q.Autounlock || q.Proto >= 2 {
		dst = appendBool(dst, "autounlock", q.Autounlock)
	}
	if q.Autounlock || (q.Proto >= 2 && q.PID != 0) {
		dst = q.appendProcess(dst)
	}
	return dst
}

func (q *Request) appendProcess(dst []byte) []byte {
	dst = append(dst, "pid "...)
	dst = strconv.AppendInt(dst, int64(q.PID), 10)
	dst = append(dst, '\n')
	return appendLine(dst, "hostname", q.Host)
}

func (q *Request) appendProto2(dst []byte) []byte {
	dst = append(dst, "request "...)
	dst = hex.AppendEncode(dst, q.ID[:])
	dst = append(dst, "\nfence "...)
	dst = strconv.AppendUint(dst, q.Fence, 10)
	dst = append(dst, '\n')
	switch q.Verb {
	case VerbLock:
		dst = q.appendManner(dst)
	case VerbAnchor:
	default:
		return dst
	}
	dst = append(dst, "start "...)
	dst = strconv.AppendUint(dst, q.Start, 10)
	dst = append(dst, '\n')
	if q.Boot == "" {
		return append(dst, "boot\n"...)
	}
	return appendLine(dst, "boot", q.Boot)
}

// appendManner writes how a LOCK wants its locks, and for how long.
func (q *Request) appendManner(dst []byte) []byte {
	if q.Choice == ChoiceAll {
		dst = append(dst, "choice all\n"...)
	} else {
		dst = append(dst, "choice any\n"...)
	}
	switch q.Mode {
	case ModeShared:
		dst = append(dst, "mode shared\n"...)
	case ModeSlots:
		dst = append(dst, "mode slots "...)
		dst = strconv.AppendUint(dst, uint64(q.Slots), 10)
		dst = append(dst, '\n')
	default:
		dst = append(dst, "mode exclusive\n"...)
	}
	dst = appendSeconds(dst, "lease", q.Lease)
	return appendSeconds(dst, "wait", q.Wait)
}

func appendLine(dst []byte, key, value string) []byte {
	dst = append(dst, key...)
	dst = append(dst, ' ')
	dst = append(dst, value...)
	return append(dst, '\n')
}

func appendBool(dst []byte, key string, v bool) []byte {
	if v {
		return appendLine(dst, key, "1")
	}
	return appendLine(dst, key, "0")
}

func appendSeconds(dst []byte, key string, d time.Duration) []byte {
	dst = append(dst, key...)
	dst = append(dst, ' ')
	dst = strconv.AppendFloat(dst, d.Seconds(), 'f', -1, 64)
	return append(dst, '\n')
}
