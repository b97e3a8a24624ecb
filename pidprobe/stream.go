package pidprobe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// maxPending bounds the questions of a [Stream] that wait for an answer.
const maxPending = 1 << 16

// ErrPending is returned for one question too many that waits for its answer.
var ErrPending = errors.New("too many questions without an answer")

// Answer is what a host says of a process.
type Answer struct {
	Host    string // as in the question
	PID     int32
	Verdict Verdict
}

// Stream asks many questions, and hands out answers as they come: some late, some
// never. It is for one goroutine; Close may be called by any.
//
// An answer is one to a question that was asked: same process number, same host,
// and from the address to which it went.
type Stream struct {
	c       *Client
	conn    *net.UDPConn
	addrs   map[string]netip.AddrPort // looked up once
	pending map[pendingKey]int
	waiting int
	local   []Answer
	out, in []byte
}

type pendingKey struct {
	from netip.AddrPort
	host string
	pid  int32
}

// Stream opens a socket for questions.
func (c *Client) Stream() (*Stream, error) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, fmt.Errorf("open a socket for questions: %w", err)
	}
	return &Stream{
		c:       c,
		conn:    conn,
		addrs:   make(map[string]netip.AddrPort),
		pending: make(map[pendingKey]int),
		in:      make([]byte, maxDatagram),
	}, nil
}

// Request sends a question. Old servers may also send answers that were not
// wanted. An error is [ErrPID], [ErrNoHost], [ErrPending], the context's or one of
// the network.
func (s *Stream) Request(ctx context.Context, host string, pid int32, want Flags) error {
	if pid < 1 {
		return ErrPID
	}
	if s.c.Local(host) {
		if v := Check(Process{PID: pid}); want.wants(v) {
			if len(s.local) >= maxPending {
				return ErrPending
			}
			s.local = append(s.local, Answer{host, pid, v})
		}
		return nil
	}
	to, ok := s.addrs[host]
	if !ok {
		addrs, err := s.c.resolve(ctx, host)
		if err != nil {
			return err
		}
		to = addrs[0]
		s.addrs[host] = to
	}
	if s.waiting >= maxPending {
		return ErrPending
	}
	s.out = appendQuestion(s.out[:0], pid, host, want&AllAnswers, nil)
	if _, err := s.conn.WriteToUDPAddrPort(s.out, to); err != nil {
		return fmt.Errorf("ask %s: %w", host, err)
	}
	s.pending[pendingKey{to, host, pid}]++
	s.waiting++
	return nil
}

// Receive waits for the next answer. The error is the context's, or [ErrClosed].
func (s *Stream) Receive(ctx context.Context) (Answer, error) {
	if len(s.local) > 0 {
		a := s.local[0]
		s.local = s.local[1:]
		return a, nil
	}
	if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
		return Answer{}, ErrClosed
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-interrupted // or it would end the next wait
		}
	}()
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(s.in)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return Answer{}, ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return Answer{}, ErrClosed
		case err != nil:
			return Answer{}, fmt.Errorf("receive answers: %w", err)
		}
		a, ok := parseAnswer(s.in[:n])
		if !ok {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		key := pendingKey{from, string(a.host), a.pid}
		switch s.pending[key] {
		case 0:
			continue
		case 1:
			delete(s.pending, key)
		default:
			s.pending[key]--
		}
		s.waiting--
		return Answer{key.host, a.pid, a.verdict}, nil
	}
}

// Forget ends the wait for all answers that have not come.
func (s *Stream) Forget() {
	clear(s.pending)
	s.waiting = 0
}

// Pending is the number of questions that wait for an answer.
func (s *Stream) Pending() int { return s.waiting + len(s.local) }

// Close gives up the socket, and ends a Receive.
func (s *Stream) Close() error { return s.conn.Close() }
