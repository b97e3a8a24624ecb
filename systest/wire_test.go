package systest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// wire is a connection of which every byte is written by hand.
type wire struct {
	net.Conn
	r *bufio.Reader
}

const (
	dialTime = 20 * time.Second
	// granted is how long a grant may take, an election included, on a machine that has
	// much else to do.
	granted = 30 * time.Second
)

func dial(addr string) (*wire, error) {
	c, err := net.DialTimeout("tcp", addr, dialTime)
	if err != nil {
		return nil, err
	}
	return &wire{c, newReader(c)}, nil
}

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReaderSize(c, 256) }

// CloseWrite ends our side of the connection.
func (w *wire) CloseWrite() error { return w.Conn.(*net.TCPConn).CloseWrite() }

// connect dials for the test, which closes the connection at its end.
func connect(t *testing.T, addr string) *wire {
	t.Helper()
	w, err := dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func (w *wire) send(format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

// lines reads n lines.
func (w *wire) lines(n int, within time.Duration) ([]string, error) {
	if err := w.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	var got []string
	for range n {
		line, err := w.r.ReadString('\n')
		if err != nil {
			return got, fmt.Errorf("after %q and %q: %w", got, line, err)
		}
		got = append(got, strings.TrimSuffix(line, "\n"))
	}
	return got, nil
}

// block is a status block, as far as the test has to know it.
type block struct {
	lines    []string // as they came, with those before the block, without blank ones
	owner    string
	locked   bool
	obtained bool
	fence    uint64
	place    int
	fault    string // the word and the text of an error
}

// status reads up to the end of a status block.
func (w *wire) status(within time.Duration) (b block, err error) {
	if err := w.SetReadDeadline(time.Now().Add(within)); err != nil {
		return b, err
	}
	for {
		line, err := w.r.ReadString('\n')
		if err != nil {
			return b, fmt.Errorf("after %q: %w", b.lines, err)
		}
		line = strings.TrimSuffix(line, "\n")
		key, rest, _ := strings.Cut(line, " ")
		switch key {
		case "":
			if len(b.lines) > 0 && slices.ContainsFunc(b.lines, func(l string) bool { return strings.HasPrefix(l, "locked ") }) {
				_, err := w.r.ReadString('\n') // a block ends with two
				return b, err
			}
			continue
		case "owner":
			b.owner = rest
		case "locked":
			b.locked = rest == "1"
		case "print_obtained":
			b.obtained = true
		case "fence":
			b.fence, _ = strconv.ParseUint(rest, 10, 64)
		case "place":
			b.place, _ = strconv.Atoi(rest)
		case "error":
			b.fault = rest
		}
		b.lines = append(b.lines, line)
	}
}

// waiting reads that the server has queued a LOCK. The place is 0 for an old client.
func (w *wire) waiting(proto int, within time.Duration) (owner string, place int, err error) {
	n := 1
	if proto >= 2 {
		n = 2
	}
	got, err := w.lines(n, within)
	if err != nil {
		return "", 0, err
	}
	owner, ok := strings.CutPrefix(got[0], "print_waiting ")
	if ok && proto >= 2 {
		var p string
		if p, ok = strings.CutPrefix(got[1], "place "); ok {
			place, err = strconv.Atoi(p)
		}
	}
	if !ok || err != nil {
		return "", 0, fmt.Errorf("%q is not that the lock is busy", got)
	}
	return owner, place, nil
}

// lock takes a lock that others may hold, as an old client that stays connected.
func (w *wire) lock(user, lock string, within time.Duration) error {
	if err := w.send("user %s\nlocks %s\nblock 1\ntimeout 600\nLOCK\n\n", user, lock); err != nil {
		return err
	}
	return w.grant(user, within)
}

// grant reads the answer to a LOCK.
func (w *wire) grant(user string, within time.Duration) error {
	b, err := w.status(within)
	if err == nil && (!b.locked || b.owner != user || b.fault != "") {
		err = fmt.Errorf("not a grant to %s: %q", user, b.lines)
	}
	return err
}

func (w *wire) unlock(user, lock string, within time.Duration) error {
	if err := w.send("user %s\nlocks %s\nUNLOCK\n\n", user, lock); err != nil {
		return err
	}
	b, err := w.status(within)
	if err == nil && (b.locked || b.fault != "") {
		err = fmt.Errorf("not a release by %s: %q", user, b.lines)
	}
	return err
}

// ask is one request on a connection of its own, as IPC::Locker 1.48 and later
// make it, and the whole answer.
func ask(addr, request string, within time.Duration) (string, error) {
	w, err := dial(addr)
	if err != nil {
		return "", err
	}
	defer w.Close()
	if err := w.send("%s\n\nEOF\n\n", request); err != nil {
		return "", err
	}
	_ = w.SetReadDeadline(time.Now().Add(within))
	var b strings.Builder
	_, err = w.r.WriteTo(&b)
	return b.String(), err
}

// worker locks and unlocks a lock of its own until its context ends.
type worker struct {
	user  string
	addr  string
	mu    sync.Mutex
	pairs int
	worst time.Duration // the longest pair that has ended
	began time.Time     // of the pair under way
	err   error         // why it has ended early
}

func startWorker(ctx context.Context, wg *sync.WaitGroup, user, addr string) *worker {
	k := &worker{user: user, addr: addr, began: time.Now()}
	wg.Go(func() {
		err := k.run(ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		if ctx.Err() == nil {
			k.err = err
		}
	})
	return k
}

func (k *worker) run(ctx context.Context) error {
	w, err := dial(k.addr)
	if err != nil {
		return err
	}
	defer w.Close()
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	for {
		k.mu.Lock()
		k.began = time.Now()
		k.mu.Unlock()
		if err := w.lock(k.user, k.user, granted); err != nil {
			return err
		}
		if err := w.unlock(k.user, k.user, granted); err != nil {
			return err
		}
		k.mu.Lock()
		k.pairs++
		k.worst = max(k.worst, time.Since(k.began))
		k.mu.Unlock()
	}
}

// soFar is how many pairs have been made and the longest of them, the one under
// way included.
func (k *worker) soFar() (pairs int, worst time.Duration, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pairs, max(k.worst, time.Since(k.began)), k.err
}

// moves waits until the worker has made n more pairs.
func (k *worker) moves(t *testing.T, n int, within time.Duration) {
	t.Helper()
	from, _, _ := k.soFar()
	await(t, within, k.user+" to lock and unlock", func() error {
		pairs, _, err := k.soFar()
		if err != nil {
			t.Fatalf("%s: %v", k.user, err)
		}
		if pairs < from+n {
			return fmt.Errorf("%d of %d pairs", pairs-from, n)
		}
		return nil
	})
}

// holders checks from within that no two hold a lock at a time.
type holders struct {
	mu    sync.Mutex
	now   string
	order []string // everybody who has had it
	fence uint64   // the last one
	wrong []string
}

func (h *holders) enter(user string, fence uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now != "" {
		h.wrong = append(h.wrong, fmt.Sprintf("%s has the lock and %s got it", h.now, user))
	}
	if fence != 0 && fence <= h.fence {
		h.wrong = append(h.wrong, fmt.Sprintf("%s got fence %d after %d", user, fence, h.fence))
	}
	h.now, h.fence = user, max(fence, h.fence)
	h.order = append(h.order, user)
}

func (h *holders) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = ""
}

func (h *holders) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.order)
}

func (h *holders) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.wrong {
		t.Error(w)
	}
}
