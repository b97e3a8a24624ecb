package db

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/netns"
)

// Status is what a node says of itself.
type Status struct {
	Role    string `json:"role"`
	Leader  string `json:"leader"`
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied_index"`
	Counts  *struct {
		Holds int    `json:"holds"`
		Waits int    `json:"waits"`
		Fence uint64 `json:"fence"`
	} `json:"counts"`
	Digest  string   `json:"digest"`
	Index   uint64   `json:"digest_index"`
	ID      string   `json:"id"`
	Servers []Server `json:"servers"`
}

// Server is one that the node knows, with a vote or without. One that was wiped has
// another id than before, and its name may not have come round yet; an address, which is
// that of one host for ever, is known of all.
type Server struct {
	Name  string `json:"name"`
	ID    string `json:"id"`
	Addr  string `json:"addr"`
	Voter bool   `json:"voter"`
}

// Hold is an entry of the table.
type Hold struct {
	Locks []string `json:"locks"`
	Owner string   `json:"owner"`
	Fence uint64   `json:"fence"`
}

// Waiter is a place in a queue.
type Waiter struct {
	Locks []string `json:"locks"`
	Owner string   `json:"owner"`
}

// Table is all that is held and waited for.
type Table struct {
	Holds   []Hold   `json:"holds"`
	Waiters []Waiter `json:"waiters"`
}

const (
	askTime   = 2 * time.Second
	maxAnswer = 16 << 20 // bytes
)

// observer reaches HTTP ports from the address that no fault cuts off from nodes.
var observer = &http.Client{Transport: &http.Transport{
	DialContext: (&net.Dialer{
		Timeout:   time.Second,
		LocalAddr: &net.TCPAddr{IP: net.ParseIP(netns.Observer)},
	}).DialContext,
	DisableKeepAlives: true,
}}

// ErrRefused is the answer of a node that certainly did nothing.
var ErrRefused = errors.New("the node refused")

func (n *Node) ask(ctx context.Context, method, path string, body, into any) error {
	return n.askWithin(ctx, askTime, method, path, body, into)
}

func (n *Node) askWithin(ctx context.Context, limit time.Duration, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, n.http+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := observer.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	switch {
	case resp.StatusCode/100 == 4:
		return fmt.Errorf("%w: %s %s", ErrRefused, resp.Status, strings.TrimSpace(string(b)))
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s %s: %s %s", n.Name, path, resp.Status, strings.TrimSpace(string(b)))
	case into == nil:
		return nil
	}
	return json.Unmarshal(b, into)
}

// Ready asks whether the node has just read the newest table.
func (n *Node) Ready(ctx context.Context) error { return n.ask(ctx, "GET", "/readyz", nil, nil) }

// Status asks for the node's state, with the digest of its table if wanted.
func (n *Node) Status(ctx context.Context, digest bool) (Status, error) {
	var s Status
	path := "/v1/status"
	if digest {
		path += "?digest=1"
	}
	return s, n.ask(ctx, "GET", path, nil, &s)
}

// Table asks for the newest table.
func (n *Node) Table(ctx context.Context) (Table, error) {
	var t Table
	return t, n.ask(ctx, "GET", "/v1/locks", nil, &t)
}

// Break ends one hold. ErrRefused says that it was over.
func (n *Node) Break(ctx context.Context, h Hold, by string) error {
	return n.ask(ctx, "POST", "/v1/break", map[string]any{"locks": h.Locks, "by": by, "fence": h.Fence}, nil)
}

// BreakAny ends whoever holds the lock, and says whose holds those were.
func (n *Node) BreakAny(ctx context.Context, lock, by string) ([]string, error) {
	var answer struct {
		Owners []string `json:"owners"`
	}
	err := n.ask(ctx, "POST", "/v1/break", map[string]any{"locks": []string{lock}, "by": by}, &answer)
	return answer.Owners, err
}

// Tail collects the events of all nodes until it is stopped.
type Tail struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	events []history.Event
	live   map[string]bool
	fence  uint64 // the highest granted
	err    error  // the first line that made no sense
}

// again is the pause before a stream that ended is asked for again.
const again = 50 * time.Millisecond

// Follow begins to collect events.
func (c *Cluster) Follow(now func() time.Duration) *Tail {
	ctx, stop := context.WithCancel(context.Background())
	t := &Tail{stop: stop, live: map[string]bool{}}
	for _, n := range c.Nodes {
		t.done.Go(func() {
			for ctx.Err() == nil {
				t.follow(ctx, n, now)
				select {
				case <-time.After(again):
				case <-ctx.Done():
				}
			}
		})
	}
	return t
}

func (t *Tail) follow(ctx context.Context, n *Node, now func() time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", n.http+"/v1/events", nil)
	if err != nil {
		return
	}
	resp, err := observer.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return
	}
	t.add(history.Event{Time: now(), Node: n.Name, Gap: true})
	t.setLive(n.Name, true)
	defer t.setLive(n.Name, false)
	t.read(resp.Body, n.Name, now)
}

// read takes what a node tells until the stream ends. A line that is whole and makes no
// sense is an error of this harness: checks would be blind to what follows.
func (t *Tail) read(r io.Reader, node string, now func() time.Duration) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		at := now()
		if len(sc.Bytes()) == 0 || !json.Valid(sc.Bytes()) {
			continue // nothing new, or the stream was cut within a line
		}
		var e history.Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			t.fail(fmt.Errorf("read the events of %s: %w: %.200q", node, err, sc.Bytes()))
			return
		}
		if e.Kind == "" {
			return // the last line says why there are no more
		}
		e.Time, e.Node = at, node
		t.add(e)
	}
}

func (t *Tail) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

func (t *Tail) add(e history.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
	t.fence = max(t.fence, e.Fence)
}

// Fence is the highest that any node has told of.
func (t *Tail) Fence() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fence
}

func (t *Tail) setLive(node string, live bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[node] = live
}

// AwaitLive waits until the streams of all nodes are heard.
func (t *Tail) AwaitLive(ctx context.Context, c *Cluster) error {
	return await(ctx, "the event streams", func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, n := range c.Nodes {
			if !t.live[n.Name] {
				return fmt.Errorf("none of %s", n.Name)
			}
		}
		return nil
	})
}

// Stop ends the collection and returns what was heard.
func (t *Tail) Stop() ([]history.Event, error) {
	t.stop()
	t.done.Wait()
	return t.events, t.err
}
