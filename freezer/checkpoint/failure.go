package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// Class tells what has to be different for another try to be of use. The classes are
// those of cr_restart(1).
type Class uint8

const (
	Args Class = iota + 1 // what was asked for is invalid
	Temp                  // something is in use that may be free later
	Perm                  // it never works with this file, on this kind of machine
	Env                   // something that it needs is missing on this host
)

func (c Class) String() string {
	return [...]string{"", "args", "temp", "perm", "env"}[min(c, Env)]
}

// Error is how everything in this package fails.
type Error struct {
	Class Class
	Errno syscall.Errno // the exit status of commands, as BLCR has it
	Log   []string      // what CRIU said, if it was CRIU that failed
	err   error
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Is lets errors.Is compare with the number.
func (e *Error) Is(target error) bool { return target == e.Errno }

func fail(class Class, errno syscall.Errno, format string, args ...any) *Error {
	return &Error{Class: class, Errno: errno, err: fmt.Errorf(format, args...)}
}

// of says what an error is of.
func (e *Error) of(what string) *Error {
	e.err = fmt.Errorf("%s: %w", what, e.err)
	return e
}

// classed gives an error of the system its class.
func classed(err error, doing string) error {
	if e := (*Error)(nil); err == nil || errors.As(err, &e) {
		return err
	}
	errno := syscall.EIO
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		errno = syscall.ETIMEDOUT
	case errors.Is(err, context.Canceled):
		errno = syscall.EINTR
	default:
		errors.As(err, &errno)
	}
	class := Env
	switch errno {
	case syscall.EAGAIN, syscall.EBUSY, syscall.EINTR, syscall.ENOMEM, syscall.EADDRINUSE, syscall.ETIMEDOUT:
		class = Temp
	}
	return fail(class, errno, "%s: %w", doing, err)
}

// Errors to branch on, with errors.Is.
var (
	ErrNoCRIU  = errors.New("no working CRIU")
	ErrNoRight = errors.New("only root may checkpoint and restart processes")
	ErrDamaged = errors.New("the context file is damaged")
)

// NewError is for commands, whose arguments may be wrong before they come here.
func NewError(class Class, errno syscall.Errno, err error) *Error {
	return &Error{Class: class, Errno: errno, err: err}
}
