package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerd/lockerd/transport"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// TestMain fails if anything of a Locker outlives it.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		deadline := time.Now().Add(patience)
		for {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			if !bytes.Contains(stacks, []byte("lockerd/client.(*conn)")) && !bytes.Contains(stacks, []byte("lockerd/client.(*hold)")) {
				break
			}
			if time.Now().After(deadline) {
				fmt.Printf("goroutines are left:\n%s\n", stacks)
				code = 1
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	os.Exit(code)
}

// fake is a lock server of one table in memory: exclusive locks, one queue each,
// no time. It is written against the protocol's description and shares nothing
// with the server.
type fake struct {
	t     testing.TB
	ln    net.Listener
	proto int // what it speaks: 1 as IPC::Locker, or 2

	mu    sync.Mutex
	conns map[net.Conn]bool
	down  bool // refuses connections by closing them
	table *table

	pings    atomic.Int64
	accepted atomic.Int64
	open     atomic.Int64
	mute     atomic.Bool // answers no PING and no RENEW
	// intercept, if set, may answer a request in place of the table.
	intercept func(q transport.Request, w io.Writer) bool
	seen      []transport.Request
}

// table is what the fakes of one cluster share.
type table struct {
	mu    sync.Mutex
	fence uint64
	holds map[string]*fakeHold
	queue map[string][]*fakeWait
	dead  []string
}

type fakeHold struct {
	owner string
	id    [16]byte
	fence uint64
	tell  func([]byte)

	renewed bool // tell is of the connection that it was renewed over
}

type fakeWait struct {
	owner string
	id    [16]byte
	tell  func([]byte)
	mine  chan struct{} // closed by the grant
	fence uint64
}

func newTable() *table {
	return &table{holds: map[string]*fakeHold{}, queue: map[string][]*fakeWait{}}
}

func newFake(t testing.TB, proto int, shared *table) *fake {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if shared == nil {
		shared = newTable()
	}
	f := &fake{t: t, ln: ln, proto: proto, conns: map[net.Conn]bool{}, table: shared}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.accepted.Add(1)
			f.mu.Lock()
			f.conns[c] = true
			down := f.down
			f.mu.Unlock()
			if down {
				c.Close()
				continue
			}
			wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.cut()
		wg.Wait()
	})
	return f
}

func (f *fake) addr() string { return f.ln.Addr().String() }

// cut breaks all connections.
func (f *fake) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
	clear(f.conns)
}

func (f *fake) setDown(down bool) {
	f.mu.Lock()
	f.down = down
	f.mu.Unlock()
	if down {
		f.cut()
	}
}

func (f *fake) setIntercept(i func(transport.Request, io.Writer) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = i
}

// requests are those of a verb so far.
func (f *fake) requests(v transport.Verb) []transport.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.seen), func(q transport.Request) bool { return q.Verb != v })
}

// serve reads the connection. An original server skips what it does not know, so
// a fake of one drops the lines of proto 2 first.
func (f *fake) serve(c net.Conn) {
	f.open.Add(1)
	defer f.open.Add(-1)
	defer c.Close()
	var src io.Reader = c
	if f.proto == 1 {
		src = oldReader(c)
	}
	var wmu sync.Mutex
	write := func(b []byte) {
		wmu.Lock()
		defer wmu.Unlock()
		_, _ = c.Write(b)
	}
	requests := make(chan transport.Request)
	gone := make(chan struct{})
	quit := make(chan struct{})
	defer close(quit)
	go func() {
		defer close(gone)
		r := transport.NewReader(src)
		for {
			q, err := r.Next()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.seen = append(f.seen, q)
			f.mu.Unlock()
			select {
			case requests <- q:
			case <-quit:
				return
			}
		}
	}()
	for {
		select {
		case q := <-requests:
			f.mu.Lock()
			i := f.intercept
			f.mu.Unlock()
			if i != nil {
				var b bytes.Buffer
				if i(q, &b) {
					write(b.Bytes())
					continue
				}
			}
			if q.Verb == transport.VerbEOF || !f.answer(q, write, requests, gone) {
				return
			}
		case <-gone:
			return
		}
	}
}

func (f *fake) answer(q transport.Request, write func([]byte), more chan transport.Request, gone chan struct{}) bool {
	t := f.table
	t.mu.Lock()
	defer t.mu.Unlock()
	status := func() []byte {
		for _, l := range q.Locks {
			if h := t.holds[l]; h != nil {
				if h.owner == q.User {
					return transport.Status{Owner: q.User, Locked: true, Locks: []string{l}, Fence: h.fence}.Append(nil, f.proto)
				}
				return transport.Status{Owner: h.owner}.Append(nil, f.proto)
			}
		}
		return transport.Status{}.Append(nil, f.proto)
	}
	switch q.Verb {
	case transport.VerbProto:
		write(transport.AppendProto(nil, "fake"))
	case transport.VerbVersion:
		write(transport.AppendVersion(nil, "9.9", time.Unix(1, 0)))
	case transport.VerbPing:
		f.pings.Add(1)
		if !f.mute.Load() {
			write(transport.AppendPong(nil))
		}
	case transport.VerbStatus:
		write(status())
	case transport.VerbLock:
		return f.lock(q, write, status, more, gone)
	case transport.VerbUnlock:
		for _, l := range q.Locks {
			if h := t.holds[l]; h != nil && h.owner == q.User {
				if q.Fence != 0 && q.Fence != h.fence {
					write(transport.Status{Fault: &transport.Fault{Word: transport.WordLost}}.Append(nil, f.proto))
					return true
				}
				t.end(l)
			}
		}
		write(status())
	case transport.VerbBreak:
		for _, l := range q.Locks {
			if h := t.holds[l]; h != nil {
				write(transport.AppendBroke(nil, h.owner))
				t.lose(l, CauseBroken, q.User)
			}
		}
		write(status())
	case transport.VerbRenew:
		if f.mute.Load() {
			return true
		}
		for l, h := range t.holds {
			if h.fence == q.Fence && h.owner == q.User {
				h.tell, h.renewed = write, true
				write(transport.Status{Owner: q.User, Locked: true, Locks: []string{l}, Fence: h.fence}.Append(nil, 2))
				return true
			}
		}
		write(transport.Status{Fault: &transport.Fault{Word: transport.WordLost}}.Append(nil, 2))
	case transport.VerbCancel:
		write(transport.Status{Fault: &transport.Fault{Word: transport.WordCancelled}}.Append(nil, 2))
	case transport.VerbDeadPID:
		t.dead = append(t.dead, fmt.Sprintf("%s %d", q.DeadHost, q.DeadPID))
	case transport.VerbList:
		var b []byte
		for l, h := range t.holds {
			b = transport.AppendLock(b, l, h.owner)
		}
		write(transport.AppendListEnd(b))
	case transport.VerbHolds:
		var b []byte
		for l, h := range t.holds {
			b = transport.AppendHold(b, fmt.Appendf(nil, `{"lock":%q,"owner":%q,"fence":%d}`, l, h.owner, h.fence))
		}
		write(transport.AppendHoldsEnd(b))
	}
	return true
}

// lock is called with the table locked, and unlocks it while it waits.
func (f *fake) lock(q transport.Request, write func([]byte), status func() []byte, more chan transport.Request, gone chan struct{}) bool {
	t := f.table
	for _, l := range q.Locks {
		if h := t.holds[l]; h == nil || h.owner == q.User {
			t.grant(l, &fakeWait{owner: q.User, id: q.ID, tell: write})
			b := transport.Status{Owner: q.User, Locked: true, Locks: []string{l}, Fence: t.holds[l].fence}
			write(b.Append(nil, f.proto))
			return true
		}
	}
	if !q.Block {
		write(status())
		return true
	}
	l := q.Locks[0]
	w := &fakeWait{owner: q.User, id: q.ID, tell: write, mine: make(chan struct{})}
	place := slices.IndexFunc(t.queue[l], func(o *fakeWait) bool { return o.owner == w.owner && o.id == w.id })
	if place >= 0 {
		t.queue[l][place] = w // the same request again keeps its place
	} else {
		t.queue[l] = append(t.queue[l], w)
		place = len(t.queue[l]) - 1
	}
	if f.proto == 1 {
		place = -1
	}
	write(transport.AppendWaiting(nil, t.holds[l].owner, place+1))
	t.mu.Unlock()
	defer t.mu.Lock()
	var limit <-chan time.Time
	if q.Wait > 0 {
		limit = time.After(q.Wait)
	}
	word := transport.WordCancelled
	select {
	case <-w.mine:
		b := transport.Status{Obtained: true, Owner: q.User, Locked: true, Locks: []string{l}, Fence: w.fence}
		write(b.Append(nil, f.proto))
		return true
	case <-limit:
		word = transport.WordTimeout
	case n := <-more:
		if n.Verb != transport.VerbCancel {
			f.t.Errorf("%v while a LOCK waits", n.Verb)
		}
	case <-gone:
		// The place stays for the client to come back.
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue[l] = slices.DeleteFunc(t.queue[l], func(o *fakeWait) bool { return o == w })
	if h := t.holds[l]; h != nil && h.fence == w.fence && w.fence != 0 {
		t.end(l)
	}
	write(transport.Status{Fault: &transport.Fault{Word: word}}.Append(nil, f.proto))
	return true
}

func (t *table) grant(l string, w *fakeWait) {
	if h := t.holds[l]; h != nil {
		w.fence = h.fence // again
	} else {
		t.fence++
		w.fence = t.fence
	}
	t.holds[l] = &fakeHold{owner: w.owner, id: w.id, fence: w.fence, tell: w.tell}
	if w.mine != nil {
		close(w.mine)
	}
}

func (t *table) end(l string) {
	delete(t.holds, l)
	if q := t.queue[l]; len(q) > 0 {
		t.queue[l] = q[1:]
		t.grant(l, q[0])
	}
}

func (t *table) lose(l, cause, by string) {
	h := t.holds[l]
	h.tell(transport.AppendLost(nil, h.fence, cause, by))
	t.end(l)
}

// hold makes somebody hold a lock.
func (t *table) hold(l, owner string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grant(l, &fakeWait{owner: owner, tell: func([]byte) {}})
}

func (t *table) free(l string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end(l)
}

func (t *table) owner(l string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.holds[l]; h != nil {
		return h.owner
	}
	return ""
}

func (t *table) waiters(l string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue[l])
}

// oldReader passes on the lines that IPC::Locker 1.502 knows.
func oldReader(c net.Conn) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		known := []string{"user", "locks", "block", "timeout", "autounlock", "hostname", "pid", "LOCK", "UNLOCK", "BREAK_LOCK", "STATUS", "DEAD_PID", "LOCK_LIST", "VERSION", "RESTART", "EOF"}
		buf := make([]byte, 0, 4096)
		one := make([]byte, 4096)
		for {
			n, err := c.Read(one)
			buf = append(buf, one[:n]...)
			for {
				i := bytes.IndexByte(buf, '\n')
				if i < 0 {
					break
				}
				if f := bytes.Fields(buf[:i]); len(f) > 0 && slices.Contains(known, string(f[0])) {
					_, _ = pw.Write(buf[:i+1])
				}
				buf = buf[i+1:]
			}
			if err != nil {
				pw.CloseWithError(io.EOF)
				return
			}
		}
	}()
	return pr
}

// locker makes a Locker of fakes that does not wait long for anything.
func locker(t testing.TB, o Options, fakes ...*fake) *Locker {
	t.Helper()
	for _, f := range fakes {
		o.Hosts = append(o.Hosts, f.addr())
	}
	if o.ConnectTries == 0 {
		o.ConnectTries = 2
	}
	if o.ConnectDelay == 0 {
		o.ConnectDelay = 10 * time.Millisecond
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, ErrNoServer) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}
