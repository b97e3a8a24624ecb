package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/jepsen/history"
)

// What this file speaks is the line protocol itself, as the clients of IPC::Locker do:
// a connection for each request, which is sent once. A connection that is cut leaves
// the outcome unknown; IPC::Locker takes it for "not locked".

const (
	// wireTime is how long such a client waits for an answer. Nobody who waits longer
	// may be passed over, which this one cannot know to be its own node's fault.
	wireTime = 10 * time.Second

	maxWireReply = 64 << 10 // bytes
)

// errUnsent says that a request has certainly reached nobody.
var errUnsent = errors.New("no server takes connections")

// wire speaks with servers.
type wire struct {
	hosts []string
	dial  func(ctx context.Context, addr string) (net.Conn, error)
	// proto is 1 for the original protocol, and 2 for the one that has fences.
	proto   int
	waiting func()
}

// wireReply is the status block that answers a request.
type wireReply struct {
	owner  string
	locked bool
	locks  []string
	fence  uint64
	fault  string
}

// ask sends settings and a verb over a connection of its own to the first server that
// takes one, and reads the answer. Whoever gets another error than errUnsent knows
// nothing of the outcome.
func (w *wire) ask(ctx context.Context, settings []string, verb string) (r wireReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, wireTime)
	defer cancel()
	c, err := w.connect(ctx)
	if err != nil {
		return r, err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	if err := c.SetDeadline(end); err != nil {
		return r, err
	}
	if w.proto > 1 {
		settings = append([]string{fmt.Sprint("proto ", w.proto)}, settings...)
	}
	text := strings.Join(settings, "\n") + "\n" + verb + "\n\nEOF\n\n"
	if _, err := io.WriteString(c, text); err != nil {
		return r, fmt.Errorf("send: %w", err)
	}
	return w.hear(c)
}

func (w *wire) connect(ctx context.Context) (net.Conn, error) {
	for _, h := range w.hosts {
		one, cancel := context.WithTimeout(ctx, connectTimeout)
		c, err := w.dial(one, h)
		cancel()
		if err == nil {
			return c, nil
		}
	}
	return nil, errUnsent
}

// hear reads until the block is complete: "owner" or "error" begins it, and an empty line
// ends it.
func (w *wire) hear(c io.Reader) (r wireReply, err error) {
	begun := false
	lines := bufio.NewScanner(io.LimitReader(c, maxWireReply))
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		rest = strings.TrimSpace(rest)
		switch word {
		case "":
			if begun {
				return r, nil
			}
		case "owner":
			r.owner, begun = rest, true
		case "locked":
			r.locked = rest == "1"
		case "lockname":
			r.locks = append(r.locks, rest)
		case "fence":
			if r.fence, err = strconv.ParseUint(rest, 10, 64); err != nil {
				return r, fmt.Errorf("a reply: %w", err)
			}
		case "error":
			r.fault, begun = rest, true
		case "print_waiting":
			if w.waiting != nil {
				w.waiting()
			}
		}
	}
	if err := lines.Err(); err != nil {
		return r, fmt.Errorf("the connection was cut: %w", err)
	}
	return r, fmt.Errorf("the connection was cut: %w", io.ErrUnexpectedEOF)
}

// wire is how the client speaks if it does so itself.
func (c *Client) wire(proto int) *wire {
	return &wire{hosts: c.options(nil).Hosts, dial: c.env.dial, proto: proto}
}

// dial connects from where the clients are.
func (e *Env) dial(ctx context.Context, addr string) (c net.Conn, err error) {
	connect := func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp", addr)
		return err
	}
	if e.Far != nil {
		return c, e.Far(connect)
	}
	return c, connect()
}

// settingsOf are the lines that say what is wanted.
func settingsOf(o client.Options, host string) []string {
	block := "1"
	if o.Try {
		block = "0"
	}
	lines := []string{"user " + o.User, "locks " + strings.Join(o.Locks, " "), "block " + block}
	if o.HoldLimit > 0 {
		lines = append(lines, fmt.Sprint("timeout ", o.HoldLimit.Seconds()))
	}
	if o.WaitLimit > 0 {
		lines = append(lines, fmt.Sprint("wait ", o.WaitLimit.Seconds()))
	}
	if o.Autounlock {
		lines = append(lines, "autounlock 1", fmt.Sprint("pid ", o.PID), "hostname "+host)
	}
	switch {
	case o.All:
		lines = append(lines, "choice all")
	case o.Shared:
		lines = append(lines, "mode shared")
	case o.Slots > 0:
		lines = append(lines, fmt.Sprint("mode slots ", o.Slots))
	}
	return lines
}

// lockOnce asks for locks once, by proto.
func (c *Client) lockOnce(o client.Options, note history.Op, proto int) (*Hold, error) {
	note.Proto = proto
	w := c.wire(proto)
	process := c.process
	w.waiting = func() {
		c.env.Rec.Add(history.Op{Process: process, Type: history.Info, F: history.Queued, Locks: o.Locks, Owner: o.User})
	}
	note.Type = history.Invoke
	c.env.Rec.Add(note)
	r, err := w.ask(context.Background(), settingsOf(o, c.env.HostName), "LOCK")
	done := note
	word, _, _ := strings.Cut(r.fault, " ")
	switch {
	case errors.Is(err, errUnsent):
		done.Type, done.Error = history.Fail, history.Unsent
	case err != nil:
		done.Type, done.Error = history.Info, err.Error()
	case word == "refused":
		done.Type, done.Error = history.Fail, r.fault
	case r.fault != "":
		done.Type, done.Error = history.Info, r.fault
	case !r.locked && o.Try:
		done.Type, done.Error = history.Fail, history.Busy
	case !r.locked:
		done.Type, done.Error = history.Info, "not locked"
	default:
		done.Type, done.Locks, done.Fence = history.OK, r.locks, r.fence
	}
	c.env.Rec.Add(done)
	switch done.Type {
	case history.OK:
		return &Hold{Fence: r.fence, locks: r.locks, proto: proto}, nil
	case history.Info:
		if word == "timeout" {
			c.renew() // the server has withdrawn it, and nobody cleans up behind that
		} else {
			c.unknown()
		}
	}
	return nil, nil
}

// unlockOnce asks once for the end of a hold.
func (c *Client) unlockOnce(h *Hold) {
	note := history.Op{
		Process: c.process, Type: history.Invoke, F: history.Release,
		Locks: h.locks, Owner: c.user, Fence: h.Fence, Proto: h.proto,
	}
	settings := []string{"user " + c.user, "locks " + strings.Join(h.locks, " ")}
	if h.proto > 1 {
		settings = append(settings, fmt.Sprint("fence ", h.Fence))
	}
	c.env.Rec.Add(note)
	r, err := c.wire(h.proto).ask(context.Background(), settings, "UNLOCK")
	word, _, _ := strings.Cut(r.fault, " ")
	switch {
	case err != nil:
		// Not even if it was not sent is the hold over, and nobody tries again.
		note.Type, note.Error = history.Info, err.Error()
	case word == "lost":
		note.Type, note.Error = history.Fail, "lost"
	case r.fault != "":
		note.Type, note.Error = history.Info, r.fault
	default:
		note.Type = history.OK
	}
	c.env.Rec.Add(note)
	if note.Type == history.Info {
		c.unknown()
	}
}

// readOnce asks once who holds a lock.
func (c *Client) readOnce(lock string, proto int) (owner string, err error) {
	note := history.Op{Process: c.process, Type: history.Invoke, F: history.Read, Locks: []string{lock}, Proto: proto}
	c.env.Rec.Add(note)
	r, err := c.wire(proto).ask(context.Background(), []string{"user " + c.user + "-looks", "locks " + lock}, "STATUS")
	if err == nil && r.fault != "" {
		err = errors.New(r.fault)
	}
	note.Type, note.Owner = history.OK, r.owner
	if err != nil {
		note.Type, note.Error = history.Info, err.Error()
	}
	c.env.Rec.Add(note)
	if err != nil {
		// A read takes nothing, so the user is not given up.
		c.process = c.env.process()
	}
	return r.owner, err
}
