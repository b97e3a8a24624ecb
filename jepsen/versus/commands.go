package versus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// What holders of the lock run: this program, under one of these commands. They talk
// to the test over a socket, line by line.
const (
	IncrementCommand = "versus-increment" // SOCKET FILE
	HoldCommand      = "versus-hold"      // SOCKET
	StampCommand     = "versus-stamp"     // SOCKET PID
)

// helperTime is how long a command waits for an answer of the test.
const helperTime = 10 * time.Minute

var errArguments = errors.New("this command is for lock clients that jx versus starts")

// talk connects a command with the test.
func talk(socket string) (net.Conn, *bufio.Reader, error) {
	c, err := net.DialTimeout("unix", socket, 10*time.Second)
	if err != nil {
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Now().Add(helperTime)) // what it bounds ends with the test, too
	return c, bufio.NewReader(c), nil
}

// Increment reads a number, says so, waits until it may go on, and writes the next.
func Increment(args []string) error {
	if len(args) != 2 {
		return errArguments
	}
	c, answers, err := talk(args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	n, err := readNumber(args[1])
	if err != nil {
		return err
	}
	fmt.Fprintf(c, "read %d\n", n)
	if _, err := answers.ReadString('\n'); err != nil {
		return err
	}
	if err := writeNumber(args[1], n+1); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "wrote %d\n", n+1)
	return err
}

func readNumber(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// writeNumber replaces the file whole, so that whoever reads meanwhile gets a number.
func writeNumber(path string, n int) error {
	next := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(next, []byte(fmt.Sprintln(n)), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// Hold says which process it is, and stays until the test hangs up.
func Hold(args []string) error {
	if len(args) != 1 {
		return errArguments
	}
	c, answers, err := talk(args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintf(c, "hold %d\n", os.Getpid())
	_, err = answers.ReadString('\n')
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Stamp says when it began to run, and whether the process that had the lock before
// lived at that time.
func Stamp(args []string) error {
	now := monotonic()
	if len(args) != 2 {
		return errArguments
	}
	before, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	alive := lives(before)
	c, answers, err := talk(args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintf(c, "stamp %d %t\n", now, alive)
	_, err = answers.ReadString('\n')
	return err
}

// parseLine reads what a command says: a word and its values.
func parseLine(line, word string, values ...any) error {
	line = strings.TrimSuffix(line, "\n")
	rest, ok := strings.CutPrefix(line, word+" ")
	if ok {
		if n, err := fmt.Sscan(rest, values...); err == nil && n == len(values) && len(strings.Fields(rest)) == n {
			return nil
		}
	}
	return fmt.Errorf("a command said %q, not %q and %d values", line, word, len(values))
}

// listener waits for commands at an address that goes with the network namespace.
type listener struct{ *net.UnixListener }

func listen(name string) (listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + name, Net: "unix"})
	if err != nil {
		return listener{}, fmt.Errorf("listen for commands: %w", err)
	}
	return listener{l}, nil
}

func (l listener) name() string { return l.Addr().String() }

// errNever says that a lock client has ended and its command never ran.
var errNever = errors.New("the command was never run")

// accept waits for the command of a lock client.
func (l listener) accept(ctx context.Context, c *client, limit time.Duration) (net.Conn, *bufio.Reader, error) {
	_ = l.SetDeadline(time.Now().Add(limit))
	heard := make(chan struct{})
	defer close(heard)
	go func() {
		select {
		case <-heard:
		case <-ctx.Done():
			_ = l.SetDeadline(time.Unix(1, 0))
		case <-c.ended:
			_ = l.SetDeadline(time.Unix(1, 0))
		}
	}()
	conn, err := l.Accept()
	switch {
	case err == nil:
		_ = conn.SetDeadline(time.Now().Add(helperTime))
		return conn, bufio.NewReader(conn), nil
	case ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case c.over():
		return nil, nil, fmt.Errorf("%w: its lock client ended with %v", errNever, c.cmd.ProcessState)
	}
	return nil, nil, fmt.Errorf("%w within %v: %w", errNever, limit, err)
}
