package client

import (
	"errors"
	"fmt"
	"strings"

	"github.com/lockerd/lockerd/transport"
)

var (
	// ErrBusy is returned by Lock with Options.Try when somebody else has the lock.
	ErrBusy = errors.New("the lock is busy")

	// ErrTimeout is returned by Lock when Options.WaitLimit has passed.
	ErrTimeout = errors.New("gave up waiting for the lock")

	// ErrNoServer is returned when no server of the list answers, or none that has
	// a leader in reach, for as long as Options allow to try.
	ErrNoServer = errors.New("no lock server")

	// ErrLost is returned by Unlock when the hold had ended already.
	ErrLost = errors.New("the lock was lost")

	// ErrUncertain is returned by Unlock when the hold is over, and nobody knows any
	// more whether it was Unlock that ended it: the answer was lost, and the servers
	// that could be asked again do not remember. As a rule it was. Who has shown the
	// fence wherever it matters may take it for nil.
	ErrUncertain = errors.New("the lock is not held any more, and whether it was lost before it was released is not known")

	// ErrSuspended is an ErrLost of a hold that is kept for its job, which has been put
	// on disk.
	ErrSuspended = fmt.Errorf("its job is on disk, and %w", ErrLost)

	// ErrRefused is returned when the server will not do what it was asked for,
	// with the server's reason.
	ErrRefused = errors.New("the lock server refused")

	// ErrSuperseded is returned by Lock when another request of the same owner and
	// request id has taken this one's place.
	ErrSuperseded = errors.New("another request of the same owner took over")

	// ErrUnsupported is returned when a request needs what the server, one of
	// IPC::Locker, does not have.
	ErrUnsupported = errors.New("the lock server is too old")

	// ErrClosed is returned by calls after Close.
	ErrClosed = errors.New("the locker is closed")
)

// errAgain marks failures that another server, or the same one later, may not have.
var errAgain = errors.New("try another server")

type againError struct{ err error }

func (e *againError) Error() string        { return e.err.Error() }
func (e *againError) Unwrap() error        { return e.err }
func (e *againError) Is(target error) bool { return target == errAgain }

func again(format string, args ...any) error { return &againError{fmt.Errorf(format, args...)} }

// fromFault turns an error line of a server into one of the errors above.
func fromFault(f *transport.Fault) error {
	switch f.Word {
	case transport.WordNoLeader, transport.WordStopping:
		return again("the server answered %w", f)
	case transport.WordTimeout:
		return ErrTimeout
	case transport.WordLost:
		if text, ok := strings.CutPrefix(f.Text, transport.SuspendedText); ok {
			return fmt.Errorf("%w: %s", ErrSuspended, text)
		}
		return fmt.Errorf("%w: %s", ErrLost, f.Text)
	case transport.WordSuperseded:
		return ErrSuperseded
	case transport.WordRefused:
		return fmt.Errorf("%w: %s", ErrRefused, f.Text)
	}
	return fmt.Errorf("%w: %w", ErrRefused, f)
}
