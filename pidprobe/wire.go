package pidprobe

import (
	"bytes"
	"strconv"
)

// The pidstat protocol is a datagram of text each way:
//
//	PIDR PID [HOST [FLAGS]]      question
//	EXIS PID 1 HOST              it exists
//	EXIS PID 0 HOST              it does not
//	UNKN PID na HOST             the host cannot tell
//
// HOST comes back as it was sent. Without one, or with 0, it is the name of the
// host that answers. There is no answer to anything else.
//
// Ours is an extension that others do not notice. FLAGS with 8 in it asks to be told
// of the end, and words after FLAGS are nobody's otherwise:
//
//	PIDR PID HOST 10             question
//	EXIS PID 1 HOST BIRTH        it exists, and you will be told
//	UNKN PID na HOST             later, unasked: look again
//	PIDR PID HOST 10 BIRTH       question about that process, no later one
//	EXIS PID 0 HOST              it does not exist any more
//
// An answer without BIRTH is what the rest of FLAGS asks for, and no promise.

// Flags are the answers that the one who asks wants. Servers before IPC::Locker
// 1.480 send all.
type Flags uint8

const (
	IfAlive Flags = 1 << iota
	IfDead
	IfUnknown

	AllAnswers = IfAlive | IfDead | IfUnknown

	// tellEnd asks to be told when the process ends, and for an answer with its
	// birth if that will be done. It needs others beside it: alone it is for servers
	// that do not know it the wish for no answer at all.
	tellEnd Flags = 8
)

const (
	// maxDatagram bounds a question. Longer ones are nobody's.
	maxDatagram = 512
	// maxHost is the longest name of a host, in DNS and in the kernel.
	maxHost = 255
	// maxReply is room for the longest answer.
	maxReply = len("UNKN ") + 10 + len(" na ") + maxHost + len(" ") + maxBirth
)

// question is what a datagram asks. Its slices are parts of the datagram.
type question struct {
	number []byte // as sent: leading zeros come back too
	pid    int32
	host   []byte // empty if the server is to give its own
	want   Flags
	birth  []byte // of the process meant, if it wants to be told of the end
}

// parseQuestion reads the first line of a datagram. No is for everything that
// gets no answer, bad numbers among them.
func parseQuestion(b []byte) (q question, ok bool) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i]
	}
	// A leading blank makes it another command.
	rest, ok := bytes.CutPrefix(b, []byte("PIDR"))
	if !ok || len(rest) == 0 || !isBlank(rest[0]) {
		return question{}, false
	}
	var host, flags []byte
	q.number, rest = cutWord(rest)
	host, rest = cutWord(rest)
	flags, rest = cutWord(rest)
	q.pid, ok = number(q.number)
	if !ok || len(host) > maxHost {
		return question{}, false
	}
	if len(host) != 1 || host[0] != '0' {
		q.host = host
	}
	q.want = parseFlags(flags)
	if q.want&tellEnd != 0 {
		q.birth, _ = cutWord(rest)
	}
	return q, true
}

// parseFlags reads flags as Perl does: nothing and 0 are the default, a text
// without a number in front is none.
func parseFlags(b []byte) Flags {
	if len(b) == 0 || len(b) == 1 && b[0] == '0' {
		return IfAlive | IfDead
	}
	var f uint8
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		f = f*10 + c - '0' // modulo 256, of which the low bits are those of the whole
	}
	return Flags(f) & (AllAnswers | tellEnd)
}

// number reads a process number of at most ten digits.
func number(b []byte) (int32, bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return int32(n), 1 <= n && n <= 1<<31-1
}

// wants says whether a verdict is to be answered.
func (f Flags) wants(v Verdict) bool {
	switch v {
	case Alive:
		return f&IfAlive != 0
	case Dead:
		return f&IfDead != 0
	}
	return f&IfUnknown != 0
}

// appendQuestion writes a question; birth may be empty.
func appendQuestion(b []byte, pid int32, host string, want Flags, birth []byte) []byte {
	b = append(b, "PIDR "...)
	b = strconv.AppendInt(b, int64(pid), 10)
	b = append(b, ' ')
	b = append(b, host...)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(want), 10)
	if len(birth) > 0 {
		b = append(b, ' ')
		b = append(b, birth...)
	}
	return append(b, '\n')
}

// appendAnswer writes an answer; birth is empty but for one that lives.
func appendAnswer(b, number []byte, v Verdict, host []byte, birth string) []byte {
	if v == Unknown {
		b = append(b, "UNKN "...)
	} else {
		b = append(b, "EXIS "...)
	}
	b = append(b, number...)
	switch v {
	case Alive:
		b = append(b, " 1 "...)
	case Dead:
		b = append(b, " 0 "...)
	default:
		b = append(b, " na "...)
	}
	b = append(b, host...)
	if birth != "" {
		b = append(b, ' ')
		b = append(b, birth...)
	}
	return b
}

// answer is what a datagram says. Its slices are parts of the datagram.
type answer struct {
	pid     int32
	verdict Verdict
	host    []byte
	birth   []byte // only of a process whose end will be told
}

func parseAnswer(b []byte) (a answer, ok bool) {
	kind, rest := cutWord(b)
	num, rest := cutWord(rest)
	word, rest := cutWord(rest)
	a.host, rest = cutWord(rest)
	a.pid, ok = number(num)
	if !ok || len(a.host) == 0 {
		return answer{}, false
	}
	switch {
	case string(kind) == "UNKN":
		return a, true
	case string(kind) != "EXIS":
	case string(word) == "1":
		a.verdict = Alive
		if birth, _ := cutWord(rest); len(birth) <= maxBirth {
			a.birth = birth
		}
		return a, true
	case string(word) == "0":
		a.verdict = Dead
		return a, true
	}
	return answer{}, false
}

// isBlank is white space as Perl's \s has it.
func isBlank(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// cutWord splits off the first word of b and the blanks around it.
func cutWord(b []byte) (word, rest []byte) {
	i := 0
	for i < len(b) && isBlank(b[i]) {
		i++
	}
	j := i
	for j < len(b) && !isBlank(b[j]) {
		j++
	}
	return b[i:j], b[j:]
}
