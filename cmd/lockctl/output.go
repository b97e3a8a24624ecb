package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// errOutput is wrapped by errors of the standard output.
var errOutput = errors.New("cannot write the output")

// output is the standard output. What does not check each write finds the first error here.
type output struct {
	io.Writer
	err error
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if err != nil {
		err = fmt.Errorf("%w: %w", errOutput, err)
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

// isClosed reports whether the process was started without standard output. The Go
// runtime has opened the null device in its place, for reading too, and all writes
// succeed; what a shell opens for >/dev/null is for writing only.
func (o *output) isClosed() bool {
	f, ok := o.Writer.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return true
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&os.ModeCharDevice == 0 || st.Rdev != unix.Mkdev(1, 3) {
		return false
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
}
