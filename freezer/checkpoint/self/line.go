package self

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// MaxPath is the most bytes in a path, PATH_MAX less the 0 at its end.
const MaxPath = 4095

// maxLine is more than the longest line of the protocol.
const maxLine = MaxPath + 64

// request is the line that a program sends.
type request struct {
	exit bool
	pipe int
	path string
}

func (r request) line() string {
	mode := ""
	if r.exit {
		mode = "exit "
	}
	return fmt.Sprintf("ckpt %s%d %s\n", mode, r.pipe, r.path)
}

func (r request) check() error {
	switch {
	case r.pipe < 0 || r.pipe > 1<<30:
		return fmt.Errorf("%d is no descriptor: %w", r.pipe, syscall.EBADF)
	case len(r.path) > MaxPath:
		return fmt.Errorf("the path has %d bytes, and %d are possible: %w", len(r.path), MaxPath, syscall.ENAMETOOLONG)
	case !filepath.IsAbs(r.path) || strings.ContainsAny(r.path, "\x00\n") || strings.HasSuffix(r.path, "/"):
		return fmt.Errorf("the path %.80q is not an absolute one of a file: %w", r.path, syscall.EINVAL)
	}
	return nil
}

var errRequest = fmt.Errorf(`not "ckpt [exit] PIPE PATH": %w`, syscall.EINVAL)

// parseRequest reads a line without its end.
func parseRequest(line string) (r request, err error) {
	rest, ok := strings.CutPrefix(line, "ckpt ")
	if !ok {
		return r, errRequest
	}
	rest, r.exit = strings.CutPrefix(rest, "exit ")
	number, path, ok := strings.Cut(rest, " ")
	if !ok {
		return r, errRequest
	}
	if r.pipe, err = strconv.Atoi(number); err != nil || strconv.Itoa(r.pipe) != number {
		return r, errRequest
	}
	r.path = path
	return r, r.check()
}

const (
	accepted = "ok\n"
	failed   = "failed %d %s\n"
)

// refusal is the line that tells of an error.
func refusal(err error) string {
	errno := syscall.EIO
	var e *checkpoint.Error
	if errors.As(err, &e) {
		errno = e.Errno
	} else {
		errors.As(err, &errno)
	}
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, err.Error())
	return fmt.Sprintf(failed, int(errno), text[:min(len(text), 1000)])
}

// Error is what the server could not do, and that the program runs on.
type Error struct {
	Errno syscall.Errno // as cr_checkpoint(1) has it
	Text  string
}

func (e *Error) Error() string { return e.Text }

// Is lets errors.Is compare with the number.
func (e *Error) Is(target error) bool { return target == e.Errno }

var errAnswer = errors.New("the server's answer is none that is known")

// parseAnswer reads a line without its end.
func parseAnswer(line string) (o Outcome, err error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "ok", "running":
		if rest == "" {
			return o, nil
		}
	case "restored":
		if rest != "" {
			return Outcome{Restored: true, Restart: rest}, nil
		}
	case "failed":
		number, text, _ := strings.Cut(rest, " ")
		if n, err := strconv.Atoi(number); err == nil && n > 0 && n < 4096 {
			return o, &Error{syscall.Errno(n), text}
		}
	}
	return o, errAnswer
}
