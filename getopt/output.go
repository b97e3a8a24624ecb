package getopt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// ErrOutput is wrapped by errors of the standard output.
var ErrOutput = errors.New("cannot write the output")

// Output is the standard output. What does not check each write finds the first error in
// Err.
type Output struct {
	io.Writer
	Err error
}

var errClosed = errors.New("it is closed")

// Write implements io.Writer. Nothing can be written if it is closed, in the sense of
// IsClosed.
func (o *Output) Write(b []byte) (n int, err error) {
	if o.IsClosed() {
		err = errClosed
	} else {
		n, err = o.Writer.Write(b)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrOutput, err)
		if o.Err == nil {
			o.Err = err
		}
	}
	return n, err
}

// IsClosed reports whether the process was started without standard output. The Go
// runtime has opened the null device in its place, for reading too, and all writes
// succeed; what a shell opens for >/dev/null is for writing only.
func (o *Output) IsClosed() bool {
	f, ok := o.Writer.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return true
	}
	const null = 1<<8 | 3 // the device's number (null(4))
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&os.ModeCharDevice == 0 || st.Rdev != null {
		return false
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFL, 0)
	return errno == 0 && flags&syscall.O_ACCMODE == syscall.O_RDWR
}

// CanPrint is the error of Print for a standard output that is closed.
func CanPrint() error {
	if out := (&Output{Writer: os.Stdout}); out.IsClosed() {
		return fmt.Errorf("%w: it is closed", ErrOutput)
	}
	return nil
}

// Print prints an answer, and returns the exit status: ExitOutput if it cannot be printed,
// which is told.
func (p *Program) Print(text string) int {
	if err := Print(text); err != nil {
		return p.Complain(err)
	}
	return 0
}

// Tell prints what was done, which asking again does not tell: what the standard output
// does not take goes to the standard error output. A pipe that nobody reads is an error
// like others, and not the program's end.
func (p *Program) Tell(text string) int {
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	err := Print(text)
	if err == nil {
		return 0
	}
	code := p.Complain(err)
	for line := range strings.Lines(text) {
		fmt.Fprintf(os.Stderr, "%s: %s", p.Name, line)
	}
	return code
}

// Print prints. The error is ErrOutput.
func Print(text string) error {
	if text == "" {
		return nil
	}
	if err := CanPrint(); err != nil {
		return err
	}
	_, err := io.WriteString(&Output{Writer: os.Stdout}, text)
	return err
}

// JSON is for other programs to read. What cannot be in JSON is a mistake of the caller.
func JSON(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err)
	}
	return string(text) + "\n"
}
