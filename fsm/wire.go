package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

var (
	// ErrNewer is returned for what a later release has written.
	ErrNewer = errors.New("written by a later release of lockerd: upgrade this node")
	// ErrCorrupt is returned for bytes that no release writes.
	ErrCorrupt = errors.New("corrupt")
)

// version is that of every encoding here. A change that an earlier release cannot
// read raises it.
const version = 1

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendStrings(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

// appendID writes 16 bytes, or none for zero.
func appendID(b []byte, id [16]byte) []byte {
	if id == [16]byte{} {
		return append(b, 0)
	}
	b = append(b, 16)
	return append(b, id[:]...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendAsk(b []byte, a Ask) []byte {
	b = binary.AppendUvarint(b, uint64(a.Node))
	return binary.AppendUvarint(b, a.Seq)
}

func appendProcess(b []byte, p Process) []byte {
	b = appendString(b, p.Host)
	b = binary.AppendUvarint(b, uint64(uint32(p.PID)))
	b = binary.AppendUvarint(b, p.Start)
	return appendString(b, p.Boot)
}

// prefixLen puts the length of dst[start:] before it.
func prefixLen(dst []byte, start int) []byte {
	var buf [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(buf[:], uint64(len(dst)-start))
	dst = append(dst, buf[:n]...)
	copy(dst[start+n:], dst[start:len(dst)-n])
	copy(dst[start:], buf[:n])
	return dst
}

// reader takes fields from the front of b. After the first error it returns zero
// values only; every value is encoded in one way, and other ways are errors.
type reader struct {
	b   []byte
	err error

	suspensions bool // holds may have them
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("cut short")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) version() { r.versionTo(version) }

// versionTo reads a version from 1 to what can be read.
func (r *reader) versionTo(last byte) byte {
	v := r.byte()
	switch {
	case r.err != nil || v >= version && v <= last:
	case v > last:
		r.err = fmt.Errorf("%w (version %d, this one reads %d)", ErrNewer, v, last)
		r.b = nil
	default:
		r.fail("version %d", v)
	}
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// upTo reads a number that is at most bound.
func (r *reader) upTo(bound uint64, what string) uint64 {
	v := r.uvarint()
	if v > bound {
		r.fail("%s %d above %d", what, v, bound)
		return 0
	}
	return v
}

// count reads a number of items of which each takes at least size bytes.
func (r *reader) count(bound, size int, what string) int {
	n := int(r.upTo(uint64(bound), what))
	if n > len(r.b)/size {
		r.fail("%s cut short", what)
		return 0
	}
	return n
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail("cut short")
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) bool() bool {
	return r.upTo(1, "flag") == 1
}

func (r *reader) string(bound int, what string) string {
	return string(r.bytes(r.count(bound, 1, what)))
}

// text reads a string that [checkText] allows.
func (r *reader) text(bound int, what string) string {
	s := r.string(bound, what)
	if err := checkText(what, s, bound); err != nil {
		r.fail("%v", err)
	}
	return s
}

// names reads lock names, without a repeated one.
func (r *reader) names() []string {
	n := r.count(MaxLocks, 2, "locks")
	if n == 0 {
		return nil
	}
	names := make([]string, n)
	for i := range names {
		names[i] = r.string(MaxName, "lock name")
	}
	if r.err == nil {
		if err := checkNames(names); err != nil {
			r.fail("%v", err)
		}
	}
	return names
}

// texts reads the strings of a result.
func (r *reader) texts(what string) []string {
	n := r.count(maxResultNames, 1, what)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	size := 0
	for i := range list {
		list[i] = r.text(MaxName, what)
		size += len(list[i])
	}
	if size > maxResultBytes {
		r.fail("%s of %d bytes", what, size)
	}
	return list
}

func (r *reader) id() (id [16]byte) {
	switch n := r.byte(); n {
	case 0:
	case 16:
		copy(id[:], r.bytes(16))
		if id == [16]byte{} {
			r.fail("bad id")
		}
	default:
		r.fail("id of %d bytes", n)
	}
	return id
}

func (r *reader) millis() Millis { return Millis(r.uvarint()) }

func (r *reader) ask() Ask {
	return Ask{Node: Incarnation(r.uvarint()), Seq: r.uvarint()}
}

func (r *reader) process() Process {
	return Process{
		Host:  r.text(MaxHost, "host name"),
		PID:   int32(r.upTo(math.MaxInt32, "process id")),
		Start: r.uvarint(),
		Boot:  r.text(MaxHost, "boot id"),
	}
}

// sub returns a reader of the next part, which its length precedes.
func (r *reader) sub(bound int, what string) *reader {
	return &reader{b: r.bytes(r.count(bound, 1, what)), err: r.err}
}

// end fails if anything is left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}
