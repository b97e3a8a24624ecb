package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// HolderCommand is the command of the program itself that runs Holder.
const HolderCommand = "holder"

const (
	holderLease = 2 * time.Second
	// holderPause is how long a holder is stopped: past its lease, and past the
	// time by which somebody else has the lock.
	holderPause = 4 * time.Second
	// longPause is one in ten of them: past the time by which a lease certainly ends.
	longPause = 9 * time.Second
	// holderWork is the time between a holder's read and its write.
	holderWork = 30 * time.Millisecond
)

// Holder is a process that does what everybody does with a lock: it takes it, reads
// what the lock protects, works, and writes the result. It does not know that it
// may be stopped in between. Its words on out, a line each, are what it does:
//
//	held FENCE
//	read
//	write FENCE
//	done
//	released | lost
//
// The process at the other end of out does it for it, and keeps the history. After
// done it waits for a line on in, so that the release is noted before it is asked for.
func Holder(args []string, in io.Reader, out io.Writer) error {
	if len(args) < 3 {
		return fmt.Errorf("a holder needs a user, a lock and servers, not %q", args)
	}
	l, err := client.New(client.Options{
		User: args[0], Locks: args[1:2], Hosts: args[2:], HoldLimit: client.NoLimit, Lease: holderLease,
		ConnectTries: 1 << 20, ConnectDelay: retryDelay, ConnectTimeout: connectTimeout,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTime)
	defer cancel()
	if err := l.Lock(ctx); err != nil {
		return err
	}
	fence := l.Fence()
	fmt.Fprintf(out, "held %d\n", fence)
	if l.Locked() {
		fmt.Fprintln(out, "read")
		time.Sleep(holderWork) // here the world may stop
		fmt.Fprintf(out, "write %d\n", fence)
	}
	fmt.Fprintln(out, "done")
	if !bufio.NewScanner(in).Scan() {
		return nil // nobody is there any more
	}
	end, cancelEnd := context.WithTimeout(context.Background(), opTime)
	defer cancelEnd()
	switch err := l.Unlock(end); {
	case err == nil:
		fmt.Fprintln(out, "released")
	default:
		fmt.Fprintln(out, "lost")
	}
	return nil
}

// holder is such a process, seen from outside.
type holder struct {
	cmd   *exec.Cmd
	words *bufio.Scanner
	pipe  *os.File
	say   io.WriteCloser
}

func (c *Client) startHolder(lock string) (*holder, error) {
	o := c.options([]string{lock})
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start a holder: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", append([]string{HolderCommand, c.user, lock}, o.Hosts...)...)
	cmd.Stdout = w
	say, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start a holder: %w", err)
	}
	return &holder{cmd: cmd, words: bufio.NewScanner(r), pipe: r, say: say}, nil
}

// hear is the next thing that the holder does; false when it has ended.
func (h *holder) hear() (word string, fence uint64, ok bool) {
	if !h.words.Scan() {
		return "", 0, false
	}
	word, rest, _ := strings.Cut(h.words.Text(), " ")
	_, _ = fmt.Sscan(rest, &fence) // none: then it stays 0
	return word, fence, true
}

func (h *holder) close() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait() // it was killed, or had ended
	_ = h.pipe.Close()
}

// addByHolder lets a process of its own add an element to the set, and stops it
// between its read and its write in some of the cases.
func (c *Client) addByHolder(ctx context.Context, a gen.Action) error {
	c.renew() // what a holder does not give up ends with its lease
	lock := Lock(a.Locks[0])
	h, err := c.startHolder(lock)
	if err != nil {
		return err
	}
	defer h.close()
	note := history.Op{
		Process: c.process, Type: history.Invoke, F: history.Acquire, Locks: []string{lock}, Owner: c.user, Lease: holderLease,
	}
	c.env.Rec.Add(note)
	word, fence, ok := h.hear()
	if !ok || word != "held" {
		note.Type, note.Error = history.Info, "the holder ended"
		c.env.Rec.Add(note)
		c.unknown()
		return nil
	}
	note.Type, note.Fence = history.OK, fence
	c.env.Rec.Add(note)
	release := history.Op{
		Process: c.process, Type: history.Invoke, F: history.Release, Locks: []string{lock}, Owner: c.user, Fence: note.Fence, Lease: holderLease,
	}
	var set []int
	for {
		word, fence, ok := h.hear()
		if !ok {
			c.unknown()
			return nil
		}
		switch word {
		case "read":
			set = c.env.Register.Read(note.Fence)
			if a.Roll < 0.3 {
				long := holderPause
				if a.Roll < 0.03 {
					long = longPause
				}
				c.stopHolder(ctx, h, lock, long)
			}
		case "write":
			c.write(set, fence)
		case "done":
			c.env.Rec.Add(release)
			_, _ = fmt.Fprintln(h.say, "release") // if it has ended we shall hear no more
		case "released", "lost":
			release.Type = history.OK
			if word == "lost" {
				release.Type, release.Error = history.Fail, word
			}
			c.env.Rec.Add(release)
			return nil
		}
	}
}

// stopHolder stops a holder for longer than its lease.
func (c *Client) stopHolder(ctx context.Context, h *holder, lock string, long time.Duration) {
	c.env.Rec.Add(history.Op{Process: c.process, Type: history.Info, F: history.Stopped, Locks: []string{lock}, Owner: c.user})
	_ = h.cmd.Process.Signal(syscall.SIGSTOP)
	_ = pause(ctx, long)
	_ = h.cmd.Process.Signal(syscall.SIGCONT)
	c.env.Rec.Add(history.Op{Process: c.process, Type: history.Info, F: history.Continued, Locks: []string{lock}, Owner: c.user})
}
