package farm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Status is the part of /v1/status that tests and measurements look at.
type Status struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Ready   bool   `json:"ready"`
	Leader  string `json:"leader"`
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied_index"`
	Counts  *struct {
		Locks int    `json:"locks"`
		Holds int    `json:"holds"`
		Waits int    `json:"waits"`
		Fence uint64 `json:"fence"`
	} `json:"counts"`
}

// Bounds of one question.
const (
	answerTime = 3 * time.Second
	maxAnswer  = 64 << 20
)

// One connection a question: those of before may lead to a node that is gone.
var web = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// get asks path of the node, which answers 200 or an error is returned.
func (n *Node) get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP()+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", n.Name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", n.Name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %s", n.Name, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// Status asks the node for its status.
func (n *Node) Status(ctx context.Context) (Status, error) {
	var s Status
	b, err := n.get(ctx, "/v1/status")
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err
}

// Ready asks /readyz: nil if the node can serve.
func (n *Node) Ready(ctx context.Context) error {
	_, err := n.get(ctx, "/readyz")
	return err
}

// AwaitReady waits until the node can serve. A node that ends instead is an error.
func (n *Node) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return Await(ctx, n.Name+" to be ready", func() error {
		err := n.Ready(ctx)
		if err != nil && !n.Running() {
			err = errors.New(lastLine(n.Log()))
			cancel(fmt.Errorf("%s has ended", n.Name))
		}
		return err
	})
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
