package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockerd/lockerd/transport"
)

// maxEntries bounds the tables that a server may send.
const maxEntries = 4 << 20

// Entry is a line of LockList.
type Entry struct{ Lock, Owner string }

// HoldInfo is a hold in the cluster's table. Times are in milliseconds.
type HoldInfo struct {
	Lock       string   `json:"lock"` // the first of Locks
	Locks      []string `json:"locks"`
	Owner      string   `json:"owner"`
	Fence      uint64   `json:"fence"`
	Mode       string   `json:"mode"` // exclusive, shared or slots
	Slots      uint32   `json:"slots,omitempty"`
	Host       string   `json:"host,omitempty"`
	PID        int32    `json:"pid,omitempty"`
	GrantedAgo int64    `json:"granted_ms_ago"`
	Left       *int64   `json:"left_ms,omitempty"` // until the hold limit; nil without one
	Lease      int64    `json:"lease_ms,omitempty"`
	Autounlock bool     `json:"autounlock"`
	Waiters    int      `json:"waiters"`

	Suspended *Suspension `json:"suspended,omitempty"` // its job is on disk, and nobody has it
}

// Suspension says why nobody has a hold: its job is on disk.
type Suspension struct {
	By      string `json:"by"`
	Ago     int64  `json:"ms_ago"`
	Context string `json:"context,omitempty"` // where the job is
	Ending  bool   `json:"ending,omitempty"`  // it is not known to have ended yet
}

// WaiterInfo is a queued request in the cluster's table. Times are in milliseconds.
type WaiterInfo struct {
	Locks  []string `json:"locks"`
	Owner  string   `json:"owner"`
	Ticket uint64   `json:"ticket"`
	Place  int      `json:"place"`          // 1 is next
	Away   bool     `json:"away,omitempty"` // passed over: the node that it waits by is out of touch
	Mode   string   `json:"mode"`
	Choice string   `json:"choice"` // any or all
	Host   string   `json:"host,omitempty"`
	PID    int32    `json:"pid,omitempty"`
	Waited int64    `json:"waited_ms"`
}

// Table is all that is held and waited for.
type Table struct {
	Holds   []HoldInfo   `json:"holds"`
	Waiters []WaiterInfo `json:"waiters"`
}

// Health is what PingStatus found.
type Health struct {
	OK     bool
	Status string        // for people and for Nagios, as IPC::Locker words it
	Took   time.Duration // to connect and be answered
	Server string        // who answered
	Err    error         // why nobody did
}

// Ping says whether a server answers.
func (l *Locker) Ping(ctx context.Context) bool { return l.PingStatus(ctx).OK }

// PingStatus asks for a sign of life, once. It says nothing about a quorum.
func (l *Locker) PingStatus(ctx context.Context) Health {
	start := time.Now()
	h := Health{}
	h.Err = l.walk(ctx, func(c *conn) error {
		defer c.close()
		// What a ping of IPC::Locker is: success is that the server reads to the end
		// and closes. A server with proto 2 answers besides.
		if err := c.send([]byte("proto 2\nPING\n\nEOF\n\n")); err != nil {
			return err
		}
		timeout := time.After(answerTime)
		for {
			r, err := c.next(ctx, timeout)
			switch {
			case errors.Is(err, errSilent):
				return again("lock server %v: %w", c.at, err)
			case err != nil && ctx.Err() != nil:
				return err
			case err == nil && r.Kind != transport.ReplyPong:
				continue
			}
			h.Server = c.at.addr
			return nil
		}
	})
	h.Took = time.Since(start)
	h.OK = h.Err == nil
	if h.OK {
		h.Status = fmt.Sprintf("%1.3f second response on %s", h.Took.Seconds(), h.Server)
	} else {
		h.Status = "No response from lockerd on " + describe(l.servers.order())
	}
	return h
}

// Owner says who holds the lock, the first of them that is busy if there are
// several; empty if nobody does. It may have changed before you read it: to learn
// whether a lock is free, try to take it.
func (l *Locker) Owner(ctx context.Context) (string, error) {
	st, err := l.simple(ctx, l.basic(transport.VerbStatus), nil)
	return st.Owner, err
}

// BreakLock ends whoever holds the lock, and says whose holds that were.
func (l *Locker) BreakLock(ctx context.Context) ([]string, error) {
	var broken []string
	_, err := l.simple(ctx, l.basic(transport.VerbBreak), func(r transport.Reply) {
		if r.Kind == transport.ReplyBroke && len(broken) < maxEntries {
			broken = append(broken, r.Owner)
			if l.opts.Hooks.Broke != nil {
				l.opts.Hooks.Broke(r.Owner)
			}
		}
	})
	return broken, err
}

// simple makes a request that a status block answers without a wait.
func (l *Locker) simple(ctx context.Context, q transport.Request, also func(transport.Reply)) (st transport.Status, err error) {
	err = l.do(ctx, l.retries(), func(c *conn) error {
		defer c.close()
		if err := c.request(&q, false); err != nil {
			return err
		}
		var err error
		if st, err = c.status(ctx, also); err != nil {
			return err
		}
		if st.Fault != nil {
			return fromFault(st.Fault)
		}
		return nil
	})
	return st, err
}

// LockList lists the locks that are held, in no order.
func (l *Locker) LockList(ctx context.Context) ([]Entry, error) {
	var list []Entry
	q := l.basic(transport.VerbList)
	err := l.table(ctx, &q, 2, func(c *conn, r transport.Reply) error {
		if r.Kind == transport.ReplyLock {
			list = append(list, Entry{Lock: r.Lock, Owner: r.Owner})
		}
		return nil
	}, func() { list = nil })
	return list, err
}

// Table is the whole table: who holds what, since when, until when, and who waits.
func (l *Locker) Table(ctx context.Context) (Table, error) {
	var t Table
	q := l.basic(transport.VerbHolds)
	err := l.table(ctx, &q, 1, func(c *conn, r transport.Reply) error {
		var err error
		switch r.Kind {
		case transport.ReplyHold:
			t.Holds = append(t.Holds, HoldInfo{})
			err = json.Unmarshal([]byte(r.Text), &t.Holds[len(t.Holds)-1])
		case transport.ReplyWaiter:
			t.Waiters = append(t.Waiters, WaiterInfo{})
			err = json.Unmarshal([]byte(r.Text), &t.Waiters[len(t.Waiters)-1])
		}
		if err != nil {
			return fmt.Errorf("lock server %v: %w: %w", c.at, transport.ErrReply, err)
		}
		return nil
	}, func() { t = Table{Holds: []HoldInfo{}, Waiters: []WaiterInfo{}} })
	return t, err
}

// table makes a request that is answered by lines with blank lines behind them.
// reset is called before each try.
func (l *Locker) table(ctx context.Context, q *transport.Request, blanks int, line func(*conn, transport.Reply) error, reset func()) error {
	return l.do(ctx, l.retries(), func(c *conn) error {
		defer c.close()
		reset()
		if q.Verb == transport.VerbHolds {
			if err := c.handshake(ctx); err != nil {
				return err
			}
			if c.proto != 2 {
				return fmt.Errorf("%w: %v is one of IPC::Locker, which has no table of holds", ErrUnsupported, c.at)
			}
		}
		if err := c.request(q, false); err != nil {
			return err
		}
		timeout := time.NewTimer(answerTime)
		defer timeout.Stop()
		for n, left := 0, blanks; left > 0; n++ {
			r, err := c.next(ctx, timeout.C)
			switch {
			case errors.Is(err, errSilent):
				return again("lock server %v: %w", c.at, err)
			case err != nil:
				return err
			case n == maxEntries:
				return fmt.Errorf("lock server %v: %w: more than %d lines", c.at, transport.ErrReply, maxEntries)
			}
			timeout.Reset(answerTime)
			switch r.Kind {
			case transport.ReplyBlank:
				left--
			case transport.ReplyStatus:
				if r.Status.Fault != nil {
					return fromFault(r.Status.Fault)
				}
			default:
				if err := line(c, r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
