package pidprobe

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
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inFlight is how many questions wait for an answer at any time.
const inFlight = 64

// load asks a server as fast as it answers, many at a time.
type load struct {
	conn    *net.UDPConn
	out, in *batch
	next    int
	asks    [][]byte
	lost    int
}

func newLoad(tb testing.TB, addr string, pids []int32) *load {
	tb.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	l := &load{conn: c.(*net.UDPConn)}
	if l.out, err = newBatch(l.conn); err != nil {
		tb.Fatal(err)
	}
	if l.in, err = newBatch(l.conn); err != nil {
		tb.Fatal(err)
	}
	for _, pid := range pids {
		l.asks = append(l.asks, fmt.Appendf(nil, "PIDR %010d bench.example 7\n", pid))
	}
	return l
}

// ask sends n questions. All have the same length, and leave as one message: it is
// the server's time that is to be measured, and the client has the same two
// processors.
func (l *load) ask(tb testing.TB, n int) {
	b := l.out
	for i := range n {
		text := l.asks[l.next%len(l.asks)]
		l.next++
		b.vectors[i].Base = unsafe.SliceData(text)
		b.vectors[i].SetLen(len(text))
	}
	h := &b.headers[0].Msghdr
	*h = unix.Msghdr{Iov: &b.vectors[0]}
	h.SetIovlen(n)
	b.messages, b.first, b.size, b.control = 1, 0, len(l.asks[0]), 0
	b.cut(h)
	if _, err := b.transmit(); err != nil {
		tb.Fatal(err)
	}
	if !b.segments {
		tb.Fatal("the kernel does not cut up messages")
	}
}

// run gets n answers.
func (l *load) run(tb testing.TB, n int) {
	l.ask(tb, inFlight)
	for got := 0; got < n; {
		_ = l.conn.SetReadDeadline(time.Now().Add(time.Second))
		k, err := l.in.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			l.lost++
			l.ask(tb, inFlight)
			continue
		case err != nil:
			tb.Fatal(err)
		}
		got += k
		l.ask(tb, k)
	}
}

// serveForBenchmark is pidstatd, more or less, in a process of its own.
func serveForBenchmark() {
	conn, err := Listen(context.Background(), "127.0.0.1", 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := NewServer(conn, ServerConfig{Name: "bench.example"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	_ = s.Serve(ctx)
}

// BenchmarkPidstatd measures a server process over loopback, 64 questions in
// flight from one client. The processor time is the server's.
func BenchmarkPidstatd(b *testing.B) {
	own := int32(os.Getpid())
	var mixed []int32
	for i := int32(1); i <= 30_000; i += 7 {
		mixed = append(mixed, i)
	}
	for _, c := range []struct {
		name string
		pids []int32
	}{
		{"alive", []int32{own}},
		{"dead", []int32{1<<31 - 1}},
		{"mixed", mixed},
	} {
		b.Run(c.name, func(b *testing.B) {
			pid, addr := startBenchServer(b)
			l := newLoad(b, addr, c.pids)
			l.run(b, 1000)
			before := processTime(b, pid)
			b.ResetTimer()
			l.run(b, b.N)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
			b.ReportMetric(float64((processTime(b, pid)-before).Nanoseconds())/float64(b.N), "server-cpu-ns/answer")
			if l.lost > 0 {
				b.ReportMetric(float64(l.lost), "stalls")
			}
		})
	}
}

func startBenchServer(b *testing.B) (pid int, addr string) {
	b.Helper()
	cmd := selfCommand("server")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	addr, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return cmd.Process.Pid, strings.TrimSpace(addr)
}

// processTime is the processor time of all threads of a process, in hundredths of
// a second.
func processTime(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// BenchmarkAnswer is the part of a worker between the two system calls of the
// network. It must not allocate.
func BenchmarkAnswer(b *testing.B) {
	s := serve(b, "127.0.0.1", ServerConfig{Rate: -1, SourceRate: -1})
	w, err := s.newWorker()
	if err != nil {
		b.Fatal(err)
	}
	defer w.look.close()
	fill := func() {
		for i := range batchSize {
			d := &w.batch.grams[i]
			d.peer.Family = unix.AF_INET
			w.batch.headers[i].n = uint32(copy(d.data[:], "PIDR 1 bench.example 7\n"))
			w.batch.headers[i].Controllen = 0
		}
	}
	once := func() {
		fill()
		w.batch.messages, w.batch.answers = 0, 0
		w.read(batchSize)
		w.look.look(w.pids[:w.n], w.verdicts[:w.n])
		w.write()
		if w.batch.answers != batchSize {
			b.Fatal("not all answered")
		}
	}
	once()
	b.ReportAllocs()
	for i := 0; i < b.N; i += batchSize {
		once()
	}
}

func BenchmarkCheck(b *testing.B) {
	p, err := Lookup(int32(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for range b.N {
		if Check(p) != Alive {
			b.Fatal("dead")
		}
	}
}
