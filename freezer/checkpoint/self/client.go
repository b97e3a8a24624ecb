package self

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// SocketVariable is the environment variable that names the server's socket.
const SocketVariable = "LOCKERD_CHECKPOINT_SOCKET"

// Mode says what becomes of the program when the file is safe.
type Mode bool

const (
	Stay Mode = false // it runs on
	Exit Mode = true  // it and all that is checkpointed with it are killed
)

// Outcome is how a call returns.
type Outcome struct {
	Restored bool   // it is a restart
	Restart  string // a word that no other restart has
}

// ErrNoServer says that there is nobody who would checkpoint us.
var ErrNoServer = errors.New("nobody here checkpoints programs on request: " + SocketVariable +
	" is not set (lockersh --checkpointable sets it)")

// Checkpoint has the job that we are of checkpointed, and returns restored when it was
// restarted. After an error, which may be an [*Error], it runs on.
func Checkpoint(ctx context.Context, path string, mode Mode) (restored bool, err error) {
	o, err := Ask(ctx, path, mode)
	return o.Restored, err
}

// answerTime is how long the server may take for its first answer.
const answerTime = time.Minute

// Ask is [Checkpoint], and tells restarts apart.
func Ask(ctx context.Context, path string, mode Mode) (o Outcome, err error) {
	doing := func(err error) error { return fmt.Errorf("checkpoint this program: %w", err) }
	socket := os.Getenv(SocketVariable)
	if socket == "" {
		return o, doing(ErrNoServer)
	}
	if path, err = filepath.Abs(path); err != nil {
		return o, doing(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return o, doing(err)
	}
	r := request{exit: bool(mode), pipe: int(write.Fd()), path: path}
	if err = r.check(); err == nil {
		err = r.send(ctx, socket)
	}
	if err != nil {
		_, _ = read.Close(), write.Close()
		return o, doing(err)
	}
	if o, err = await(ctx, read, write); err != nil {
		return o, doing(err)
	}
	return o, nil
}

// send returns when the server has accepted the request, and is not connected any more.
func (r request) send(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_, sent := io.WriteString(conn, r.line()) // one that is refused may not be read at all
	line, err := readLine(lineReader(conn))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("read the server's answer: %w", err), sent)
	}
	_, err = parseAnswer(line)
	return err
}

// await waits for the answer in the pipe. It must not be closed before that: see the
// package's protocol.
func await(ctx context.Context, read, write *os.File) (Outcome, error) {
	type answer struct {
		o   Outcome
		err error
	}
	got := make(chan answer, 1)
	go func() { // for as long as the answer takes, and no longer than the process lives
		var a answer
		line, err := readLine(lineReader(read))
		if a.err = err; err == nil {
			a.o, a.err = parseAnswer(line)
		}
		_, _ = read.Close(), write.Close()
		got <- a
	}()
	select {
	case a := <-got:
		return a.o, a.err
	case <-ctx.Done():
		return Outcome{}, context.Cause(ctx)
	}
}

// lineReader reads no more than the longest line.
func lineReader(r io.Reader) *bufio.Reader {
	return bufio.NewReaderSize(io.LimitReader(r, maxLine), 256)
}

// readLine reads a line, and returns it without its end.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSuffix(line, "\n"), err
}
