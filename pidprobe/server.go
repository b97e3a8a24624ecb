package pidprobe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ServerConfig are the settings of a [Server]. The zero value is good.
type ServerConfig struct {
	// Name is the host in answers to questions that name none; this host's name if
	// empty. Give the full one: clients tell hosts apart by it.
	Name string
	// Rate bounds the answers a second in all, SourceRate those to one address
	// (IPv6: network of 64 bits). 0 means DefaultRate and DefaultSourceRate, a
	// negative number no limit. What is over is dropped; clients ask again.
	Rate, SourceRate int
	// Workers is the number of goroutines that answer; 0 is 1. They bound the
	// processor time that a flood can take. More of them answer more only where
	// processors are plenty: they take turns at one socket.
	Workers int
}

const (
	// DefaultRate is the limit of answers a second in all.
	DefaultRate = 1_000_000
	// DefaultSourceRate is the limit of answers a second to one address.
	DefaultSourceRate = 500_000
)

// receiveBuffer is for questions that arrive while we are not running.
const receiveBuffer = 4 << 20

// Server answers questions of the pidstat protocol about processes of this host.
type Server struct {
	conn    *net.UDPConn
	name    []byte
	workers int
	limit   *limiter
	start   time.Time
	subs    *subscriptions

	asked, answered, refused, limited atomic.Uint64
}

// Stats counts datagrams since the start.
type Stats struct {
	Asked    uint64 // questions and other datagrams that came in
	Answered uint64 // answers sent
	Refused  uint64 // datagrams that are no question
	Limited  uint64 // questions over the rate
	Pushed   uint64 // ends told to those who wanted to be
}

// Listen opens a socket for a [Server]; an empty host is all addresses of this
// one, IPv4 and IPv6. It fails if the port is in use.
func Listen(ctx context.Context, host string, port uint16) (*net.UDPConn, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		return nil, fmt.Errorf("open the pidstat port: %w", err)
	}
	return pc.(*net.UDPConn), nil
}

// NewServer makes a server on a socket, which is the server's from now on.
func NewServer(conn *net.UDPConn, cfg ServerConfig) (*Server, error) {
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname()
	}
	if cfg.Name == "" || len(cfg.Name) > maxHost {
		return nil, fmt.Errorf("%q is no name for the host in answers", cfg.Name)
	}
	if err := wantAddresses(conn); err != nil {
		return nil, fmt.Errorf("set up the pidstat socket: %w", err)
	}
	_ = conn.SetReadBuffer(receiveBuffer) // the kernel gives what it allows
	s := &Server{conn: conn, name: []byte(cfg.Name), workers: cfg.Workers}
	s.workers = max(s.workers, 1)
	s.limit = newLimiter(orDefault(cfg.Rate, DefaultRate), orDefault(cfg.SourceRate, DefaultSourceRate))
	s.start = time.Now().Add(-time.Hour)
	s.subs = newSubscriptions(conn, s.start)
	return s, nil
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return max(n, 0)
}

// Addr is the address served.
func (s *Server) Addr() *net.UDPAddr { return s.conn.LocalAddr().(*net.UDPAddr) }

// Stats counts what has happened so far.
func (s *Server) Stats() Stats {
	return Stats{s.asked.Load(), s.answered.Load(), s.refused.Load(), s.limited.Load(), s.subs.pushed.Load()}
}

// Serve answers until the context ends, then closes the socket and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	defer s.conn.Close()
	defer s.subs.close()
	var wg sync.WaitGroup
	errs := make([]error, s.workers)
	for i := range s.workers {
		w, err := s.newWorker()
		if err != nil {
			errs[i] = err
			break
		}
		wg.Go(func() {
			errs[i] = w.run()
			s.conn.Close() // one without the others would be half a server
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errs...)
}

// worker receives, looks and answers, batch by batch.
type worker struct {
	s     *Server
	batch *batch
	look  *lookout
	now   time.Duration // when the batch was read

	// Of the questions of a batch that are questions: their place among the
	// datagrams, what they ask, and what to say.
	n         int
	place     [batchSize]int
	questions [batchSize]question
	sources   [batchSize]sourceKey
	allowed   [batchSize]bool
	pids      [batchSize]int32
	verdicts  [batchSize]Verdict
	replies   [batchSize][maxReply]byte
}

func (s *Server) newWorker() (*worker, error) {
	b, err := newBatch(s.conn)
	if err != nil {
		return nil, fmt.Errorf("set up the pidstat socket: %w", err)
	}
	return &worker{s: s, batch: b, look: newLookout()}, nil
}

func (w *worker) run() error {
	defer w.look.close()
	for {
		n, err := w.batch.receive()
		if err != nil {
			return fmt.Errorf("receive on the pidstat port: %w", err)
		}
		w.read(n)
		w.look.look(w.pids[:w.n], w.verdicts[:w.n])
		w.write()
		sent, err := w.batch.transmit()
		w.s.answered.Add(uint64(sent))
		if err != nil {
			return fmt.Errorf("send on the pidstat port: %w", err)
		}
	}
}

// read picks the questions that are to be answered out of n datagrams.
func (w *worker) read(n int) {
	w.n = 0
	for i := range n {
		text, whole := w.batch.question(i)
		q, ok := parseQuestion(text)
		if !whole || !ok {
			continue
		}
		w.place[w.n], w.questions[w.n], w.sources[w.n] = i, q, w.batch.source(i)
		w.n++
	}
	asked := w.n
	w.now = time.Since(w.s.start)
	w.s.limit.allow(w.now, w.sources[:asked], w.allowed[:asked])
	w.n = 0
	for i := range asked {
		if w.allowed[i] {
			w.place[w.n], w.questions[w.n], w.pids[w.n] = w.place[i], w.questions[i], w.questions[i].pid
			w.n++
		}
	}
	w.s.asked.Add(uint64(n))
	w.s.refused.Add(uint64(n - asked))
	w.s.limited.Add(uint64(asked - w.n))
}

// write makes the answers that are wanted.
func (w *worker) write() {
	for i := range w.n {
		q := &w.questions[i]
		host := q.host
		if len(host) == 0 {
			host = w.s.name
		}
		birth := ""
		if q.want&tellEnd != 0 && w.verdicts[i] == Alive {
			w.verdicts[i], birth = w.s.subs.ask(w.now, q, host, w.batch, w.place[i])
		}
		if birth == "" && !q.want.wants(w.verdicts[i]) {
			continue
		}
		w.batch.answer(w.place[i], appendAnswer(w.replies[i][:0], q.number, w.verdicts[i], host, birth))
	}
}
