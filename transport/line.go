package transport

import (
	"bytes"
	"fmt"
	"io"
)

// Bounds of the line protocol, in bytes unless said otherwise.
const (
	MaxLine      = 64 << 10  // a request line with its newline
	MaxPending   = 256 << 10 // requests read ahead while a LOCK waits
	MaxReplyLine = 1 << 20   // a reply line with its newline
	MaxName      = 1024      // a lock name or a user
	MaxNames     = 64        // lock names in one request, a count
	MaxHost      = 255       // a host name
)

// Error words: the first word of an "error" line, which programs branch on.
const (
	WordNoLeader   = "no_leader"
	WordTooLong    = "too_long"
	WordTooMany    = "too_many"
	WordBadRequest = "bad_request"
	WordRefused    = "refused"
	WordTimeout    = "timeout"
	WordCancelled  = "cancelled"
	WordLost       = "lost"
	WordSuperseded = "superseded"
	WordStopping   = "stopping"
	WordElsewhere  = "elsewhere"
)

// SuspendedText begins the text behind WordLost where the hold goes on without its owner.
// Clients that do not know of that take it for any other loss.
const SuspendedText = "suspended: "

// Fault is what an "error" line says: a word for programs and a text for people.
type Fault struct {
	Word string
	Text string
}

func (f *Fault) Error() string {
	if f.Text == "" {
		return f.Word
	}
	return f.Word + ": " + f.Text
}

func faultf(word, format string, args ...any) *Fault {
	return &Fault{Word: word, Text: fmt.Sprintf(format, args...)}
}

// Buffer sizes. Most requests fit the first, so that an idle connection costs
// little; a connection that has needed more than the second gives it back.
const (
	smallBuffer = 512
	largeBuffer = 4096
)

// lines cuts a byte stream into lines.
//
// Invariant: buf[start:end] is input not yet taken; buf[start:scanned] holds no
// newline.
type lines struct {
	src     io.Reader
	buf     []byte
	start   int
	scanned int
	end     int
}

// next takes a line from what has been read, without its newline. The line is
// valid until the next call of any method.
func (l *lines) next() ([]byte, bool) {
	i := bytes.IndexByte(l.buf[l.scanned:l.end], '\n')
	if i < 0 {
		l.scanned = l.end
		return nil, false
	}
	line := l.buf[l.start : l.scanned+i]
	l.start = l.scanned + i + 1
	l.scanned = l.start
	return line, true
}

// skipBlank takes line ends without lines.
func (l *lines) skipBlank() {
	for l.start < l.end && (l.buf[l.start] == '\n' || l.buf[l.start] == '\r') {
		l.start++
	}
	l.scanned = max(l.scanned, l.start)
}

// fill reads once. It fails with too_long, and reads nothing, while more than
// limit bytes are waiting to be taken.
func (l *lines) fill(limit int) error {
	if l.end-l.start >= limit {
		return faultf(WordTooLong, "more than %d bytes without an end", limit)
	}
	l.makeRoom()
	n, err := l.src.Read(l.buf[l.end:])
	l.end += n
	if n > 0 {
		return nil // an error comes again with the next read
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

func (l *lines) makeRoom() {
	if l.start == l.end {
		l.start, l.scanned, l.end = 0, 0, 0
		if len(l.buf) > largeBuffer {
			l.buf = nil
		}
	}
	if l.end < len(l.buf) {
		return
	}
	if l.start > len(l.buf)/2 {
		copy(l.buf, l.buf[l.start:l.end])
	} else {
		grown := make([]byte, max(2*len(l.buf), smallBuffer))
		copy(grown, l.buf[l.start:l.end])
		l.buf = grown
	}
	l.scanned -= l.start
	l.end -= l.start
	l.start = 0
}

// buffered is the number of bytes read and not taken.
func (l *lines) buffered() int { return l.end - l.start }

// isSpace is Perl's \s on byte strings: ASCII only, so that names in any other
// encoding stay whole.
func isSpace(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') }

// word cuts the first word off a line. A line that begins with white space
// begins with the empty word, as Perl's split has it.
func word(line []byte) (w, rest []byte) {
	i := 0
	for i < len(line) && !isSpace(line[i]) {
		i++
	}
	w = line[:i]
	for i < len(line) && isSpace(line[i]) {
		i++
	}
	return w, line[i:]
}

// printable reports whether a name can be shown to people and put in a line:
// no white space and no control bytes, which could rewrite a terminal.
func printable[S string | []byte](s S) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
