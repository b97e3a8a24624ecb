package transport

import (
	"bytes"
	"encoding/hex"
	"io"
	"math"
	"strconv"
	"time"
)

// Reader yields the requests of one connection. One goroutine at a time may
// use it.
type Reader struct {
	in     lines
	set    Request // the settings in force
	faults [settings]*Fault
	ahead  int // input after in.start that holds no verb, as far as TakeCancel has looked
}

// NewReader reads requests from src.
func NewReader(src io.Reader) *Reader {
	return &Reader{in: lines{src: src}, set: Request{Proto: 1}}
}

// Next returns the next request, reading as much as it takes. It fails with a
// *Fault when a line is too long, io.EOF at the end of the stream (half a line
// before it is dropped: it was never sent in full), and otherwise with the
// error of the source, after which it may be called again.
func (r *Reader) Next() (Request, error) {
	for {
		r.ahead = 0
		for {
			line, ok := r.in.next()
			if !ok {
				break
			}
			if len(line) >= MaxLine {
				return Request{}, faultf(WordTooLong, "a line has more than %d bytes", MaxLine-1)
			}
			if verb := r.take(line); verb != VerbNone {
				return r.request(verb), nil
			}
		}
		if err := r.in.fill(MaxLine); err != nil {
			return Request{}, err
		}
	}
}

// Fill reads once, for a caller that must not execute anything yet but wants to
// know of a hang-up. What it reads is kept for Next. It fails with a *Fault
// once MaxPending bytes are kept.
func (r *Reader) Fill() error { return r.in.fill(MaxPending) }

// Empty takes the blank lines off the front of what has been read, and reports
// whether that is all there was.
func (r *Reader) Empty() bool {
	r.ahead = 0
	r.in.skipBlank()
	return r.in.buffered() == 0
}

// Buffered is the number of bytes read and not yet turned into requests.
func (r *Reader) Buffered() int { return r.in.buffered() }

// TakeCancel reports whether the next verb of what has been read is CANCEL, and
// if so takes it, with the lines before it.
func (r *Reader) TakeCancel() bool {
	for {
		rest := r.in.buf[r.in.start+r.ahead : r.in.end]
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			return false
		}
		w, _ := word(rest[:i])
		switch verbOf(w) {
		case VerbNone:
			r.ahead += i + 1
		case VerbCancel:
			cancelEnd := r.in.start + r.ahead + i + 1
			r.ahead = 0
			for r.in.start < cancelEnd {
				line, _ := r.in.next()
				r.take(line)
			}
			return true
		default:
			return false
		}
	}
}

// Narrow replaces the list of locks in force by those a request has got, so
// that a later UNLOCK means them. It does nothing if the client has sent another
// list since the request with this LocksGen.
func (r *Reader) Narrow(gen uint64, locks []string) {
	if r.set.LocksGen == gen {
		r.set.Locks = locks
	}
}

// The settings whose values can be faulty.
const (
	setUser = iota
	setLocks
	setTimeout
	setHost
	setPID
	setID
	setChoice
	setMode
	setLease
	setStart
	setBoot
	setWait
	setFence
	setDead
	settings
)

// take carries out a line: it returns its verb, or VerbNone after a setting and
// for a line to skip.
func (r *Reader) take(line []byte) Verb {
	w, rest := word(line)
	if verb := verbOf(w); verb != VerbNone {
		switch verb {
		case VerbDeadPID:
			r.dead(rest)
		case VerbProto:
			n, err := strconv.Atoi(firstWord(rest))
			if err != nil || n < 2 {
				return VerbNone
			}
			r.set.Proto = 2
		case VerbRenew, VerbPing, VerbCancel, VerbHolds, VerbAnchor:
			if r.set.Proto < 2 {
				return VerbNone
			}
		}
		return verb
	}
	switch string(w) {
	case "user":
		r.set.User, r.faults[setUser] = name("user", firstWord(rest))
	case "locks", "lock":
		r.set.LocksGen++
		r.set.Locks, r.faults[setLocks] = names(rest)
	case "block":
		r.set.Block = truth(rest)
	case "timeout":
		r.set.Timeout, r.faults[setTimeout] = seconds("timeout", rest)
	case "autounlock":
		r.set.Autounlock = truth(rest)
	case "hostname":
		r.set.Host, r.faults[setHost] = host(firstWord(rest))
	case "pid":
		r.set.PID, r.faults[setPID] = pid(firstWord(rest))
	default:
		if r.set.Proto >= 2 {
			r.takeProto2(string(w), rest)
		}
	}
	return VerbNone
}

func (r *Reader) takeProto2(key string, rest []byte) {
	switch key {
	case "request":
		r.faults[setID] = nil
		r.set.ID = [16]byte{}
		if v := firstWord(rest); len(v) != 2*len(r.set.ID) {
			r.faults[setID] = faultf(WordBadRequest, "request wants 32 hexadecimal digits, not %s", quote(v))
		} else if _, err := hex.Decode(r.set.ID[:], []byte(v)); err != nil {
			r.set.ID = [16]byte{}
			r.faults[setID] = faultf(WordBadRequest, "request wants 32 hexadecimal digits, not %s", quote(v))
		}
	case "choice":
		r.faults[setChoice] = nil
		switch v := firstWord(rest); v {
		case "any":
			r.set.Choice = ChoiceAny
		case "all":
			r.set.Choice = ChoiceAll
		default:
			r.faults[setChoice] = faultf(WordBadRequest, "choice is any or all, not %s", quote(v))
		}
	case "mode":
		r.set.Mode, r.set.Slots, r.faults[setMode] = mode(rest)
	case "lease":
		r.set.Lease, r.faults[setLease] = seconds("lease", rest)
	case "wait":
		r.set.Wait, r.faults[setWait] = seconds("wait", rest)
	case "start":
		r.set.Start, r.faults[setStart] = number("start", firstWord(rest))
	case "boot":
		r.set.Boot, r.faults[setBoot] = name("boot", firstWord(rest))
	case "fence":
		r.set.Fence, r.faults[setFence] = number("fence", firstWord(rest))
	}
}

func (r *Reader) dead(rest []byte) {
	r.faults[setDead] = nil
	h, rest := word(rest)
	var fault *Fault
	if r.set.DeadHost, fault = host(string(h)); fault != nil {
		r.faults[setDead] = fault
	}
	if r.set.DeadPID, fault = pid(firstWord(rest)); fault != nil {
		r.faults[setDead] = fault
	}
}

// depends lists the settings each verb depends on; those of the process are
// added for a LOCK with autounlock.
var depends = [...][]int{
	VerbLock:    {setUser, setLocks, setTimeout, setID, setChoice, setMode, setLease, setWait},
	VerbUnlock:  {setUser, setLocks, setID, setFence},
	VerbBreak:   {setUser, setLocks, setFence},
	VerbStatus:  {setUser, setLocks},
	VerbRenew:   {setUser, setFence},
	VerbDeadPID: {setDead},
	VerbAnchor:  {setUser, setFence, setHost, setPID, setStart, setBoot},
}

var dependsProcess = []int{setHost, setPID, setStart, setBoot}

func (r *Reader) request(verb Verb) Request {
	q := r.set
	q.Verb = verb
	if verb != VerbDeadPID {
		q.DeadHost, q.DeadPID = "", 0
	}
	if int(verb) < len(depends) {
		q.Fault = r.fault(depends[verb])
	}
	if verb == VerbLock && q.Autounlock && q.Fault == nil {
		q.Fault = r.fault(dependsProcess)
		if q.Fault == nil && (q.PID == 0 || q.Host == "") {
			q.Fault = faultf(WordBadRequest, "autounlock needs the pid and the hostname of a process")
		}
	}
	if verb == VerbAnchor && q.Fault == nil && (q.Fence == 0 || q.PID == 0 || q.Host == "") {
		q.Fault = faultf(WordBadRequest, "ANCHOR needs the fence of a hold, and the pid and the hostname of its process")
	}
	return q
}

func (r *Reader) fault(of []int) *Fault {
	for _, i := range of {
		if r.faults[i] != nil {
			return r.faults[i]
		}
	}
	return nil
}

func verbOf(w []byte) Verb {
	switch string(w) {
	case "LOCK":
		return VerbLock
	case "UNLOCK":
		return VerbUnlock
	case "BREAK_LOCK":
		return VerbBreak
	case "STATUS":
		return VerbStatus
	case "LOCK_LIST":
		return VerbList
	case "DEAD_PID":
		return VerbDeadPID
	case "VERSION":
		return VerbVersion
	case "RESTART":
		return VerbRestart
	case "EOF":
		return VerbEOF
	case "proto":
		return VerbProto
	case "RENEW":
		return VerbRenew
	case "PING":
		return VerbPing
	case "CANCEL":
		return VerbCancel
	case "HOLDS":
		return VerbHolds
	case "ANCHOR":
		return VerbAnchor
	}
	return VerbNone
}

func firstWord(rest []byte) string {
	w, _ := word(rest)
	return string(w)
}

// truth is Perl's: all but nothing and 0.
func truth(rest []byte) bool {
	w, _ := word(rest)
	return len(w) > 0 && string(w) != "0"
}

func name(what, v string) (string, *Fault) {
	switch {
	case len(v) > MaxName:
		return "", faultf(WordTooLong, "a %s has at most %d bytes, not %d", what, MaxName, len(v))
	case !printable(v):
		return "", faultf(WordBadRequest, "a %s has no control bytes: %s", what, quote(v))
	}
	return v, nil
}

func names(rest []byte) ([]string, *Fault) {
	var list []string
next:
	for len(rest) > 0 {
		var w []byte
		w, rest = word(rest)
		for _, have := range list {
			if have == string(w) {
				continue next
			}
		}
		if len(list) == MaxNames {
			return nil, faultf(WordTooMany, "a request names at most %d locks", MaxNames)
		}
		v, fault := name("lock name", string(w))
		if fault != nil {
			return nil, fault
		}
		list = append(list, v)
	}
	return list, nil
}

func host(v string) (string, *Fault) {
	ok := v != "" && len(v) <= MaxHost
	for i := range len(v) {
		c := v[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '.' || c == '-' || c == '_' || c == ':')
	}
	if !ok {
		return "", faultf(WordBadRequest, "%s is no host name", quote(v))
	}
	return v, nil
}

func pid(v string) (int32, *Fault) {
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 1 {
		return 0, faultf(WordBadRequest, "a pid is a number from 1 to %d, not %s", math.MaxInt32, quote(v))
	}
	return int32(n), nil
}

func number(what, v string) (uint64, *Fault) {
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, faultf(WordBadRequest, "%s is a whole number, not %s", what, quote(v))
	}
	return n, nil
}

// seconds reads a time. What is above zero never becomes zero, which would mean
// for ever; what is too long to count is cut to 292 years.
func seconds(what string, rest []byte) (time.Duration, *Fault) {
	v := firstWord(rest)
	s, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(s) || math.IsInf(s, 0) || s < 0 {
		return 0, faultf(WordBadRequest, "%s is a number of seconds, 0 or more, not %s", what, quote(v))
	}
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64, nil
	}
	d := time.Duration(math.Round(s * float64(time.Second)))
	if d == 0 && s > 0 {
		d = 1
	}
	return d, nil
}

func mode(rest []byte) (Mode, uint32, *Fault) {
	w, rest := word(rest)
	switch string(w) {
	case "exclusive":
		return ModeExclusive, 0, nil
	case "shared":
		return ModeShared, 0, nil
	case "slots":
		v := firstWord(rest)
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || n < 1 {
			return 0, 0, faultf(WordBadRequest, "mode slots wants a number of holders, 1 or more, not %s", quote(v))
		}
		return ModeSlots, uint32(n), nil
	}
	return 0, 0, faultf(WordBadRequest, "mode is exclusive, shared or slots N, not %s", quote(string(w)))
}

// quote shows input in an error text: ASCII only, and not much of it.
func quote(v string) string {
	const most = 40
	if len(v) > most {
		return strconv.QuoteToASCII(v[:most]) + "..."
	}
	return strconv.QuoteToASCII(v)
}
