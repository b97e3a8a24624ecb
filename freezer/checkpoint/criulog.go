package checkpoint

import (
	"bufio"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
)

// maxLog bounds the lines that are kept of a log of CRIU.
const maxLog = 200

// logLine is a line of CRIU's log: time, process, level, place and text.
var logLine = regexp.MustCompile(`^(?:\([0-9.]+\))?\s*(?:pie: )?(?:[0-9]+: )?(Error|Warn)\s+\([^()]*:[0-9]+\): (.*)$`)

// criuLog is what CRIU complained of.
type criuLog struct {
	errors, warnings []string
}

// saidEnd is the end of the name of a file, beside the log, for what CRIU says before it
// has a log.
const saidEnd = ".stderr"

func saidFile(log string) (*os.File, error) {
	return os.OpenFile(log+saidEnd, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// readLog reads a log. That there is none is the same as an empty one.
func readLog(path string) (l criuLog) {
	l.read(path + saidEnd)
	l.read(path)
	return l
}

func (l *criuLog) read(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	l.scan(f)
}

func (l *criuLog) scan(log io.Reader) {
	for lines := bufio.NewScanner(log); lines.Scan(); {
		m := logLine.FindStringSubmatch(lines.Text())
		switch {
		case m == nil, strings.Contains(m[2], "RLIMIT_NOFILE"): // it says that wherever it may not raise a limit, and goes on
		case m[1] == "Error" && len(l.errors) < maxLog:
			l.errors = append(l.errors, m[2])
		case m[1] == "Warn" && len(l.warnings) < maxLog:
			l.warnings = append(l.warnings, m[2])
		}
	}
}

// verdict is what a line of CRIU's log means.
type verdict struct {
	has   []string // all of these
	class Class
	errno syscall.Errno
	say   string // instead of CRIU's words
}

// verdicts are tried in this order on each line, from the first: later lines are mostly
// consequences. CRIU's own exit status is 1 whatever happened.
var verdicts = []verdict{
	{[]string{"Can't fork for", "File exists"}, Temp, syscall.EBUSY, ""},
	{[]string{"Pid", "already exist"}, Temp, syscall.EBUSY, ""},
	{[]string{"Unable to create a thread: -17"}, Temp, syscall.EBUSY, "the number of one of its threads is in use"},
	{[]string{"Unable to create a thread: -11"}, Temp, syscall.EAGAIN, "there may be no more threads now"},
	{[]string{"Unable to create a thread: -12"}, Temp, syscall.ENOMEM, "memory is short"},
	{[]string{"Address already in use"}, Temp, syscall.EADDRINUSE, "an address or a port that it had is in use here"},
	{[]string{"Cannot allocate memory"}, Temp, syscall.ENOMEM, ""},
	{[]string{"Resource temporarily unavailable"}, Temp, syscall.EAGAIN, ""},
	{[]string{"Device or resource busy"}, Temp, syscall.EBUSY, ""},
	{[]string{"Can't get rlimit", "Operation not permitted"}, Env, syscall.EPERM, "to checkpoint what is not root's takes CAP_SYS_RESOURCE, which is missing here"},
	{[]string{"No space left on device"}, Env, syscall.ENOSPC, ""},
	{[]string{"Disk quota exceeded"}, Env, syscall.EDQUOT, ""},
	{[]string{"No such file or directory"}, Env, syscall.ENOENT, ""},
	{[]string{"Permission denied"}, Env, syscall.EACCES, ""},
	{[]string{"has bad size"}, Env, syscall.ESTALE, ""},
	{[]string{"has bad mode"}, Env, syscall.ESTALE, ""},
	{[]string{"has bad build-ID"}, Env, syscall.ESTALE, ""},
	{[]string{"Can't dump nested", "namespace"}, Env, syscall.EOPNOTSUPP, "one of its processes is in a namespace that the eldest is not in, which cannot be checkpointed (namespaces(7))"},
	{[]string{"Connected TCP socket"}, Env, syscall.ENOTCONN, "it has an open TCP connection: say whether to restore or close it"},
	{[]string{"inet: Unsupported proto 262"}, Env, syscall.EOPNOTSUPP, "it has a socket of Multipath TCP, which cannot be checkpointed (a Go program opens none with GODEBUG=multipathtcp=0)"},
	{[]string{"In-flight connection"}, Temp, syscall.EAGAIN, ""},
	{[]string{"Can't dump half of stream unix connection"}, Env, syscall.ENOTCONN, "it is connected, over a UNIX socket, to a process that is not checkpointed"},
	{[]string{"External socket is used"}, Env, syscall.ENOTCONN, "it is connected, over a UNIX socket, to a process that is not checkpointed"},
	{[]string{"anon_inode:[io_uring]"}, Env, syscall.EOPNOTSUPP, "it uses io_uring, which cannot be checkpointed"},
	{[]string{"Peer unresolved"}, Perm, syscall.ECONNREFUSED, ""},
	{[]string{"is traced by"}, Temp, syscall.EBUSY, ""},
	{[]string{"Unable to detach from", "No such process"}, Temp, syscall.EBUSY, "somebody else has begun to trace or to checkpoint it"},
	{[]string{"Timeout reached"}, Temp, syscall.ETIMEDOUT, "it did not stand still in time"},
}

// ofFiles are those of CRIU's words that have paths, which lack their first slash there.
var ofFiles = []struct {
	words *regexp.Regexp
	say   string
}{
	{regexp.MustCompile(`^File /?(.*) has bad size (\d+) \(expect (\d+)\)$`), "/$1 has $2 bytes, and had $3 when it was checkpointed"},
	{regexp.MustCompile(`^File /?(.*) has bad mode (\d+) \(expect (\d+)\)$`), "/$1 has the mode $2, and had $3 when it was checkpointed"},
	{regexp.MustCompile(`^File /?(.*) has bad build-ID.*$`), "/$1 is not the program or library that it was when it was checkpointed (its build-ID is another)"},
	{regexp.MustCompile(`^Can't open file /?(.*?)(?: on restore)?: (.*)$`), "open /$1: $2"},
}

// inWords is what a line is for who knows nothing of CRIU, if that is known.
func inWords(line string) string {
	for _, f := range ofFiles {
		if f.words.MatchString(line) {
			return f.words.ReplaceAllString(line, f.say)
		}
	}
	return "CRIU: " + line
}

// judge makes an error of a log.
func (l *criuLog) judge() *Error {
	class, errno, say := Perm, syscall.EINVAL, "CRIU failed and did not say why"
	if len(l.errors) > 0 {
		say = inWords(l.errors[0])
	}
lines:
	for _, line := range l.errors {
		for _, v := range verdicts {
			if !v.matches(line) {
				continue
			}
			if class, errno, say = v.class, v.errno, v.say; say == "" {
				say = inWords(line)
			}
			break lines
		}
	}
	e := fail(class, errno, "%s", say)
	e.Log = l.errors
	return e
}

func (v *verdict) matches(line string) bool {
	for _, part := range v.has {
		if !strings.Contains(line, part) {
			return false
		}
	}
	return true
}
