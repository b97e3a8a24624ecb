package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"

	"github.com/lockerd/lockerd/fsm"
)

// status answers GET /v1/status[?digest=1].
func (p *webPort) status(w http.ResponseWriter, r *http.Request) {
	digest, err := flag(r, "digest")
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	s, err := p.node.Report(ctx, digest)
	if err != nil {
		failNode(w, err)
		return
	}
	answer(w, http.StatusOK, s)
}

// members answers GET /v1/members.
func (p *webPort) members(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	list, err := p.node.Members(ctx)
	if err != nil {
		failNode(w, err)
		return
	}
	answer(w, http.StatusOK, list)
}

// locks answers GET /v1/locks[?lock=NAME][&stale=1].
func (p *webPort) locks(w http.ResponseWriter, r *http.Request) {
	stale, err := flag(r, "stale")
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	t, err := p.node.Table(ctx, stale)
	if err != nil {
		failNode(w, err)
		return
	}
	list := t.list(r.URL.Query().Get("lock"))
	w.Header().Set("Content-Type", "application/json")
	// A table may be too long for one buffer: it goes out a line an element.
	b := bufio.NewWriterSize(w, 64<<10)
	e := json.NewEncoder(b)
	io.WriteString(b, `{"holds":[`)
	each(b, e, list.Holds)
	io.WriteString(b, `],"waiters":[`)
	each(b, e, list.Waiters)
	io.WriteString(b, "]}\n")
	_ = b.Flush() // the client has gone: nobody to tell
}

func each[T any](b *bufio.Writer, e *json.Encoder, list []T) {
	for i := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		if e.Encode(&list[i]) != nil {
			return
		}
	}
}

// flag reads a parameter that is on or off.
func flag(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return r.URL.Query().Has(name), nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s=%q: wants true or false", name, v)
	}
	return on, nil
}

// BreakRequest is the body of POST /v1/break.
type BreakRequest struct {
	Locks []string `json:"locks"`
	By    string   `json:"by"`              // who wants it, for the logs of those concerned
	Fence uint64   `json:"fence,omitempty"` // break this hold alone
}

// BreakAnswer says what was ended; nothing, if nothing was held.
type BreakAnswer struct {
	Locks  []string `json:"locks"`
	Owners []string `json:"owners"`
}

func (p *webPort) breakLocks(w http.ResponseWriter, r *http.Request) {
	req, code, err := readBreak(r)
	if err != nil {
		fail(w, code, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	res, err := p.node.Submit(ctx, fsm.Break{Locks: req.Locks, By: req.By, Fence: fsm.Fence(req.Fence)})
	p.log.Info("break", "locks", req.Locks, "fence", req.Fence, "by", req.By, "from", r.RemoteAddr,
		"broken", res.Locks, "owners", res.Broken, "refused", res.Reason, "error", err)
	switch {
	case err != nil:
		failNode(w, fmt.Errorf("it is not known whether it was done: %w", err))
	case res.Code == fsm.Refused:
		fail(w, http.StatusBadRequest, errors.New(res.Reason))
	case res.Code == fsm.NotHeld:
		fail(w, http.StatusConflict, fmt.Errorf("nothing was broken: the hold with fence %d is over, or is not of these locks", req.Fence))
	case res.Code != fsm.Done:
		failNode(w, fmt.Errorf("unexpected answer of the table: %v", res.Code))
	default:
		answer(w, http.StatusOK, BreakAnswer{Locks: orEmpty(res.Locks), Owners: orEmpty(res.Broken)})
	}
}

// readBreak reads a request, and the HTTP status for its error.
func readBreak(r *http.Request) (req BreakRequest, code int, err error) {
	if code, err := readJSON(r, &req); err != nil {
		return req, code, err
	}
	if len(req.Locks) == 0 {
		return req, http.StatusBadRequest, errors.New("which locks? name them in \"locks\"")
	}
	if req.By == "" {
		return req, http.StatusBadRequest, errors.New("who breaks them? say so in \"by\"")
	}
	return req, 0, nil
}

// readJSON reads the one JSON value of a request's body, and the HTTP status for its error.
func readJSON(r *http.Request, req any) (code int, err error) {
	// A form of a foreign page cannot have this type without a browser asking first.
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return http.StatusUnsupportedMediaType, errors.New("wants Content-Type: application/json")
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(req); err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return http.StatusRequestEntityTooLarge, fmt.Errorf("the request is longer than %d bytes", long.Limit)
		}
		return http.StatusBadRequest, fmt.Errorf("read the request: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return http.StatusBadRequest, errors.New("read the request: more than one JSON value")
	}
	return 0, nil
}

// orEmpty makes JSON's [] of nil.
func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
