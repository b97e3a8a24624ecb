package systest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/systest/farm"
)

// What the most hostile of these clients may cost a node: its resident memory
// never passes this. Measured: 95 MB, with ten thousand connections.
const memoryBound = 200 << 20

// Whatever a client sends, others are served meanwhile and the node stays small.
func TestHostileClients(t *testing.T) {
	f := start(t, farm.Options{})
	n := f.Nodes[0]
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	good := startWorker(ctx, &wg, "good", n.Client())
	good.moves(t, 10, granted)

	random := make([]byte, 256<<10)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(random)
	long := strings.Repeat("x", 64<<10)

	for _, c := range []struct {
		name string
		do   func(t *testing.T, w *wire)
	}{
		{"lines that say nothing", func(t *testing.T, w *wire) {
			must(t, w.send("%s", strings.Repeat("HELO there\nLOCKS\n user\nUNLOCKED 5\n", 1000)))
			// They are skipped: the connection is as good as new.
			must(t, w.lock("garbage", "garbage", granted))
		}},
		{"a megabyte without a newline", func(t *testing.T, w *wire) {
			_ = w.send("%s", strings.Repeat("x", 1<<20)) // the node may hang up before the end
			b, err := w.status(granted)
			if err != nil || b.fault != "too_long" {
				t.Errorf("%q, %v; want the error too_long", b.lines, err)
			}
			if !ends(w) {
				t.Error("the connection goes on")
			}
		}},
		{"a name of 64 KiB", func(t *testing.T, w *wire) {
			_ = w.send("user long\nlocks %s\nblock 0\nLOCK\n\n", long)
			b, err := w.status(granted)
			if err != nil || b.locked || b.fault != "too_long" {
				t.Errorf("%q, %v; want the error too_long", b.lines, err)
			}
		}},
		{"a name of 2,000 bytes", func(t *testing.T, w *wire) {
			must(t, w.send("user long\nlocks %s\nblock 0\nLOCK\n\n", long[:2000]))
			b, err := w.status(granted)
			if err != nil || b.locked || b.fault == "" {
				t.Errorf("%q, %v; want an error", b.lines, err)
			}
			must(t, w.lock("long", "short", granted))
		}},
		{"random bytes", func(t *testing.T, w *wire) {
			_, _ = w.Write(random)
			_ = w.CloseWrite()
			if !ends(w) {
				t.Error("the connection goes on")
			}
		}},
		{"names of every byte", func(t *testing.T, w *wire) {
			for c := range 256 {
				if c == '\n' {
					continue
				}
				must(t, w.send("user bin\nlocks %s\nblock 0\nLOCK\n\n", []byte{'a', byte(c), 'b'}))
				if _, err := w.status(granted); err != nil {
					t.Fatalf("byte %d: %v", c, err)
				}
			}
		}},
		{"numbers that are none", func(t *testing.T, w *wire) {
			for v, fault := range map[string]string{
				"x": "bad_request", "-1": "bad_request", "NaN": "bad_request", "-Inf": "bad_request", "1e309": "bad_request",
				"99999999999999999999999999": "",
			} {
				must(t, w.send("user num\nlocks num\nblock 0\ntimeout %s\nLOCK\n\n", v))
				if b, err := w.status(granted); err != nil || b.fault != fault || b.locked != (fault == "") {
					t.Errorf("timeout %s: %q, %v; want the error %q", v, b.lines, err, fault)
				}
				must(t, w.unlock("num", "num", granted))
			}
		}},
		{"a flood behind a LOCK that waits", func(t *testing.T, w *wire) {
			must(t, connect(t, n.Client()).lock("first", "flooded", granted))
			must(t, w.send("user second\nlocks flooded\nblock 1\nLOCK\n\n"))
			if _, _, err := w.waiting(1, granted); err != nil {
				t.Fatal(err)
			}
			_ = w.SetWriteDeadline(time.Now().Add(granted))
			for range 1000 {
				if _, err := w.Write(random[:64<<10]); err != nil {
					break // it has hung up
				}
			}
			if !ends(w) {
				t.Error("the connection goes on")
			}
		}},
		{"answers that nobody reads", func(t *testing.T, w *wire) {
			_ = w.SetWriteDeadline(time.Now().Add(2 * time.Second))
			for {
				if w.send("%s", strings.Repeat("user mute\nlocks mute\nSTATUS\n\n", 1000)) != nil {
					break // the node does not read on
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do(t, connect(t, n.Client()))
			good.moves(t, 5, granted)
		})
	}
	t.Run("ten thousand that say nothing", func(t *testing.T) { crowd(t, n, good) })

	if _, worst, err := good.soFar(); err != nil || worst > 10*time.Second {
		t.Errorf("the good client stood still for %v, %v", worst, err)
	}
	now, most, err := n.Memory()
	must(t, err)
	t.Logf("resident memory: %d MB now, %d MB at most", now>>20, most>>20)
	if most > memoryBound {
		t.Errorf("the node had %d MB of resident memory, at most %d MB", most>>20, memoryBound>>20)
	}
}

// crowd opens many connections, some of which send half a request, and keeps them.
func crowd(t *testing.T, n *farm.Node, good *worker) {
	const many = 10_000
	need := uint64(many + 500)
	var r unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &r))
	if r.Cur < need {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: need, Max: max(need, r.Max)}); err != nil {
			t.Skipf("%d connections need %d open files, the limit is %d: %v", many, need, r.Max, err)
		}
	}
	var theirs unix.Rlimit
	must(t, unix.Prlimit(n.PID(), unix.RLIMIT_NOFILE, nil, &theirs))
	if theirs.Cur < need+need/8 {
		limit := &unix.Rlimit{Cur: need + need/8, Max: max(need+need/8, theirs.Max)}
		if err := unix.Prlimit(n.PID(), unix.RLIMIT_NOFILE, limit, nil); err != nil {
			t.Skipf("the node may not have %d open files: %v", limit.Cur, err)
		}
	}
	conns := make([]net.Conn, 0, many)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range many {
		c, err := net.DialTimeout("tcp", n.Client(), dialTime)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
		if i%2 == 0 {
			_, err = fmt.Fprint(c, "user half\nlocks half\nLOC")
			must(t, err)
		}
	}
	// The last of them is served as well as the first.
	for _, c := range []net.Conn{conns[1], conns[many-1]} {
		w := &wire{Conn: c, r: newReader(c)}
		must(t, w.lock(fmt.Sprint("crowd-", c.LocalAddr()), fmt.Sprint("crowd-", c.LocalAddr()), granted))
	}
	good.moves(t, 20, granted)
}

// ends says whether the node ends the connection.
func ends(w *wire) bool {
	_ = w.SetReadDeadline(time.Now().Add(granted))
	for {
		if _, err := w.r.ReadByte(); err != nil {
			var timeout net.Error
			return !errors.As(err, &timeout) || !timeout.Timeout()
		}
	}
}
