package workload

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
)

// Site is a node as those see it who freeze there, and what there is to freeze.
type Site struct {
	Node   string
	Admin  string // the admin socket
	Volume string // directory of a file system, as the harness sees it

	pid int // of the process to stop
}

// freezers is how many clients of the workload freeze; the others take locks.
const freezers = 2

// freezeRecord is what a node tells of an order.
type freezeRecord struct {
	ID     uint64 `json:"id"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	Text   string `json:"reason_text"`
	Error  string `json:"error"`
	Nodes  []struct {
		Node  string `json:"node"`
		Cause string `json:"cause"`
	} `json:"nodes"`
}

// alone lists the nodes that did not thaw because they were asked to.
func (r freezeRecord) alone() string {
	var all []string
	for _, n := range r.Nodes {
		if n.Cause != "asked" {
			all = append(all, n.Node+" "+n.Cause)
		}
	}
	return strings.Join(all, ", ")
}

// ending is how a client ends a freeze.
type ending int

const (
	endAsked    ending = iota // it asks for that
	endDeadline               // it waits until the time is up
	endVanish                 // its connection breaks
	endGuard                  // a guard is killed, and then it asks
)

// freeze orders a freeze on one node or on all, and ends it in one way or another.
func (c *Client) freeze(ctx context.Context, a gen.Action) error {
	c.renew() // each order is a process of its own: many have no known end
	timeout := time.Duration(1+c.rng.IntN(4)) * time.Second
	end := []ending{endAsked, endAsked, endAsked, endDeadline, endVanish, endGuard}[c.rng.IntN(6)]
	attached := end == endVanish || c.rng.IntN(4) > 0
	stay := time.Duration(c.rng.Int64N(int64(timeout)))
	action, spec, nodes, targets := c.target(a.Roll)
	request := map[string]any{"action": action, "spec": spec, "nodes": nodes, "timeout_ms": timeout.Milliseconds(), "attached": attached}
	if c.rng.IntN(4) == 0 {
		h, err := c.acquire(c.options(c.env.names(a.Locks[:1])))
		if h == nil {
			return err
		}
		defer c.release(h)
		request["fence"] = h.Fence
	}
	f := &freezing{
		c: c, by: c.env.Sites[c.rng.IntN(len(c.env.Sites))],
		note: history.Op{Process: c.process, F: history.Freeze, Locks: targets, Owner: c.user, Limit: timeout, Value: action},
	}
	f.add(history.Invoke, history.Freeze)
	f.run(ctx, request, attached, end, stay)
	return nil
}

// target is what to freeze: the volumes of all nodes, or of one, or a process of one.
func (c *Client) target(roll float64) (action string, spec any, nodes, targets []string) {
	sites := c.env.Sites
	if roll >= 0.5 {
		i := c.rng.IntN(len(sites))
		sites = sites[i : i+1]
	}
	action, spec = "fsfreeze", map[string]any{"mounts": []string{c.env.Data}}
	kind := "fs:"
	if roll >= 0.75 {
		action, kind = "freeze", "process:"
		spec = map[string]any{"targets": []any{map[string]any{"kind": "processes", "pids": []int{sites[0].pid}}}}
	}
	for _, s := range sites {
		nodes, targets = append(nodes, s.Node), append(targets, kind+s.Node)
	}
	return action, spec, nodes, targets
}

// freezing is an order under way.
type freezing struct {
	c    *Client
	by   *Site
	note history.Op
}

func (f *freezing) add(t history.Type, what string) {
	op := f.note
	op.Type, op.F = t, what
	f.c.env.Rec.Add(op)
}

// over notes how an order ended.
func (f *freezing) over(t history.Type, value, text string) {
	f.note.Value, f.note.Error = value, text
	f.add(t, history.Freeze)
}

func (f *freezing) run(ctx context.Context, request any, attached bool, end ending, stay time.Duration) {
	life, vanish := context.WithCancel(context.Background())
	defer vanish()
	lines, err := f.by.open(life, request)
	switch {
	case errors.Is(err, errNotTaken):
		f.over(history.Fail, "refused", err.Error())
		return
	case err != nil:
		f.over(history.Info, "", err.Error())
		return
	}
	r, ok := await(context.Background(), lines, opTime, "frozen")
	f.note.Order = r.ID
	switch {
	case !ok:
		vanish()
		f.over(history.Info, "", "nothing was heard of it any more")
		return
	case r.State != "frozen":
		f.over(history.Fail, r.Reason, r.Text)
		return
	}
	f.add(history.Info, history.Frozen)
	if end == endDeadline {
		stay = f.note.Limit + opTime // it ends before
	}
	over := false
	if attached {
		r, over = await(ctx, lines, stay, "closed")
	} else {
		_ = pause(ctx, stay) // a run that ends cuts it short
	}
	switch {
	case over:
		f.over(history.OK, r.Reason, r.alone())
		return
	case end == endVanish:
		f.add(history.Info, history.Thaw)
		vanish()
		f.over(history.Info, "vanished", "")
		return
	case end == endGuard:
		killGuard(f.c)
	}
	f.add(history.Info, history.Thaw)
	answer, err := f.by.thaw(life, f.note.Order)
	switch {
	case attached:
		r, _ = await(context.Background(), lines, opTime, "closed")
	case err == nil && len(answer) > 0:
		r = answer[0]
	}
	switch {
	case r.State == "closed":
		f.over(history.OK, r.Reason, r.alone())
	case err != nil:
		f.over(history.Info, "", err.Error())
	default:
		f.over(history.Info, "", "nobody says how it ended")
	}
}

// await reads what is told of an order until it is in a state, or over. It is not ok if
// that was not heard, within a time or before the stream was over; then the record is the
// last one.
func await(ctx context.Context, lines <-chan freezeRecord, most time.Duration, state string) (last freezeRecord, ok bool) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	for {
		select {
		case r, open := <-lines:
			if !open {
				return last, false
			}
			if last = r; r.State == state || r.State == "closed" {
				return r, true
			}
		case <-limit.C:
			return last, false
		case <-ctx.Done():
			return last, false
		}
	}
}

// errNotTaken says that a node has certainly not taken an order.
var errNotTaken = errors.New("not taken")

func (s *Site) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dialRelay(s.Admin) },
	}}
}

func (s *Site) post(ctx context.Context, path string, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client().Do(req)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	var f freezeRecord
	_ = json.NewDecoder(resp.Body).Decode(&f) // without a reason it is refused all the same
	if resp.StatusCode == http.StatusConflict {
		return nil, fmt.Errorf("%w: %s", errNotTaken, f.Error)
	}
	return nil, fmt.Errorf("%s: %s", resp.Status, f.Error)
}

// open sends an order, and gives what is told of it until the stream ends.
func (s *Site) open(ctx context.Context, request any) (<-chan freezeRecord, error) {
	opening, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(opTime, cancel)
	resp, err := s.post(opening, "/v1/orders", request)
	timer.Stop()
	if err != nil {
		cancel()
		return nil, err
	}
	lines := make(chan freezeRecord, 64) // more than an order has states
	go func() {
		defer cancel()
		defer close(lines)
		defer resp.Body.Close()
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			var r freezeRecord
			if json.Unmarshal(sc.Bytes(), &r) == nil && r.ID > 0 {
				select {
				case lines <- r:
				default:
					return
				}
			}
		}
	}()
	return lines, nil
}

func (s *Site) thaw(ctx context.Context, id uint64) ([]freezeRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, opTime)
	defer cancel()
	resp, err := s.post(ctx, "/v1/orders/thaw", map[string]any{"id": id})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var all struct {
		Orders []freezeRecord `json:"orders"`
	}
	return all.Orders, json.NewDecoder(resp.Body).Decode(&all)
}

// guardName is what the processes are called that guard freezes.
const guardName = "freezer-guard"

// killGuard kills one of the guards there are, of whatever node and order.
func killGuard(c *Client) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is sound
	var pids []int
	for _, p := range paths {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), guardName) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) == 0 {
		return
	}
	pid := pids[c.rng.IntN(len(pids))]
	c.env.Rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: history.GuardKilled, Value: strconv.Itoa(pid)})
	_ = syscall.Kill(pid, syscall.SIGKILL) // or it has just ended
}
