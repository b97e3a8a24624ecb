package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"
)

// maxAnswer bounds an answer: a table of some millions of locks.
const maxAnswer = 4 << 30

// The parts of the node's JSON that are shown to people.

type server struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	Addr      string `json:"addr"`
	Voter     bool   `json:"voter"`
	Leader    bool   `json:"leader"`
	Reachable bool   `json:"reachable"`
}

type status struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	Role      string    `json:"role"`
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Ready     bool      `json:"ready"`
	Executors bool      `json:"executors"`
	Reason    string    `json:"reason"`
	Leader    string    `json:"leader"`
	LeadID    string    `json:"leader_id"`
	LeadAt    string    `json:"leader_addr"`
	Term      uint64    `json:"term"`
	Commit    uint64    `json:"commit_index"`
	Applied   uint64    `json:"applied_index"`
	Servers   []server  `json:"servers"`
	Counts    *struct {
		Locks int `json:"locks"`
		Holds int `json:"holds"`
		Waits int `json:"waits"`
	} `json:"counts"`
	Digest string `json:"digest"`
	Index  uint64 `json:"digest_index"`
}

type member struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Host    string `json:"host"`
	Peer    string `json:"peer"`
	Client  string `json:"client"`
	Version string `json:"version"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
	Note    string `json:"note"`
}

type hold struct {
	Locks      []string `json:"locks"`
	Owner      string   `json:"owner"`
	Fence      uint64   `json:"fence"`
	Mode       string   `json:"mode"`
	Slots      int      `json:"slots"`
	Host       string   `json:"host"`
	PID        int      `json:"pid"`
	Granted    int64    `json:"granted_ms_ago"`
	Left       *int64   `json:"left_ms"`
	Autounlock bool     `json:"autounlock"`
	Waiters    int      `json:"waiters"`
	Suspended  *struct {
		By      string `json:"by"`
		Ago     int64  `json:"ms_ago"`
		Context string `json:"context"`
		Ending  bool   `json:"ending"`
	} `json:"suspended"`
}

type waiter struct {
	Locks  []string `json:"locks"`
	Owner  string   `json:"owner"`
	Place  int      `json:"place"`
	Away   bool     `json:"away"`
	Mode   string   `json:"mode"`
	Choice string   `json:"choice"`
	Host   string   `json:"host"`
	PID    int      `json:"pid"`
	Waited int64    `json:"waited_ms"`
}

type table struct {
	Holds   []hold   `json:"holds"`
	Waiters []waiter `json:"waiters"`
}

type event struct {
	Kind    string   `json:"kind"`
	Locks   []string `json:"locks"`
	Owner   string   `json:"owner"`
	Fence   uint64   `json:"fence"`
	Mode    string   `json:"mode"`
	Host    string   `json:"host"`
	PID     int      `json:"pid"`
	Cause   string   `json:"cause"`
	By      string   `json:"by"`
	Context string   `json:"context"`

	// Of orders, whose kinds begin with order-.
	Order  uint64   `json:"order"`
	Action string   `json:"action"`
	Nodes  []string `json:"nodes"`
	Reason string   `json:"reason"`
	Why    string   `json:"reason_text"`

	Error string `json:"error"` // the last line of a stream that the node ended
}

// get asks the node and gives its whole answer.
func (p *program) get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	return p.ask(ctx, http.MethodGet, path, query, nil)
}

func (p *program) ask(ctx context.Context, method, path string, query url.Values, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, fmt.Errorf("nothing within %v", p.timeout))
	defer cancel()
	resp, err := p.open(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, p.noAnswer(ctx, err)
	}
	return b, nil
}

// open sends a request. Its error is an answer (errRefused) or the lack of one.
func (p *program) open(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	host, web := p.addr, direct
	if p.socket != "" {
		host, web = "lockerd", overSocket(p.socket)
	} else if _, _, err := net.SplitHostPort(p.addr); err != nil {
		return nil, fmt.Errorf("--addr %s: wants host:port", p.addr)
	}
	u := url.URL{Scheme: "http", Host: host, Path: path, RawQuery: query.Encode()}
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.where(), err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := web.Do(req)
	if err != nil {
		return nil, p.noAnswer(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var f struct {
		Error string `json:"error"`
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(b, &f) != nil || f.Error == "" {
		return nil, fmt.Errorf("%w from %s: it answers %q, as no lockerd does: is that the HTTP port of a node?", errNoAnswer, p.where(), resp.Status)
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		return nil, fmt.Errorf("%w from the cluster: %s says: %s", errNoAnswer, p.where(), f.Error)
	}
	return nil, fmt.Errorf("%w: %s", errRefused, f.Error)
}

// direct goes by no proxy: nodes are reached as they are.
var direct = &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}}

// overSocket goes by a node's admin socket, one connection a request.
func overSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
		},
	}}
}

// where is whom lockctl asks.
func (p *program) where() string {
	if p.socket != "" {
		return p.socket
	}
	return p.addr
}

// unsent is why a request has reached nobody.
type unsent struct{ error }

func (u unsent) Unwrap() error { return u.error }

func (p *program) noAnswer(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var op *net.OpError
	if errors.As(err, &op) {
		if err = op.Err; op.Op == "dial" {
			err = unsent{err}
		}
	}
	switch {
	case p.socket == "":
		return fmt.Errorf("%w from %s: %w (give another node's HTTP port with --addr)", errNoAnswer, p.addr, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %s is for root and for the user that lockerd runs as", errRefused, p.socket)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		err = unsent{errors.New("no lockerd serves this socket (give the one of its --admin with --admin)")}
	}
	return fmt.Errorf("%w from %s: %w", errNoAnswer, p.socket, err)
}

// show prints an answer: as it came with --json, else by text.
func show[T any](p *program, answer []byte, text func(T)) error {
	var v T
	if err := json.Unmarshal(answer, &v); err != nil {
		return fmt.Errorf("%w from %s that lockctl understands: %w", errNoAnswer, p.where(), err)
	}
	if !p.json {
		text(v)
		return nil
	}
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(answer), "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := p.out.Write(b.Bytes())
	return err
}
