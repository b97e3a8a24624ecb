package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

const (
	// quiet is how long a stream may say nothing at all: nodes send an empty line
	// every 10 s.
	quiet = 35 * time.Second

	maxEvent = 1 << 20 // bytes of a line
)

func (p *program) watchCommand() *cobra.Command {
	var lock string
	c := &cobra.Command{
		Use:   "watch",
		Short: "Print what happens, as it happens",
		Long: `watch prints one line for every grant, wait and release, and for what orders freeze and thaw,
from now on, until it is interrupted. With --json a line is a JSON object.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.watch(cmd.Context(), lock) },
	}
	c.Flags().StringVar(&lock, "lock", "", "only what concerns the lock `name`")
	return c
}

func (p *program) watch(ctx context.Context, lock string) error {
	q := url.Values{}
	if lock != "" {
		q.Set("lock", lock)
	}
	stream, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(p.timeout, func() { cancel(fmt.Errorf("nothing within %v", p.timeout)) })
	defer silence.Stop()
	resp, err := p.open(stream, http.MethodGet, "/v1/events", q, nil)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// From here on it is the node's pulse that counts.
	silence.Stop()
	silence = time.AfterFunc(quiet, func() { cancel(fmt.Errorf("nothing within %v", quiet)) })
	defer silence.Stop()

	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		silence.Reset(quiet)
		if err := p.printEvent(lines.Bytes()); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case ctx.Err() != nil: // interrupted: that is how one ends a watch
		return nil
	case err != nil:
		return p.noAnswer(stream, err)
	}
	return p.noAnswer(stream, io.ErrUnexpectedEOF)
}

func (p *program) printEvent(line []byte) error {
	if len(bytes.TrimSpace(line)) == 0 {
		return nil
	}
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("%w from %s that lockctl understands: %w", errNoAnswer, p.where(), err)
	}
	if e.Error != "" {
		return fmt.Errorf("%w any more from %s: %s", errNoAnswer, p.where(), e.Error)
	}
	if p.json {
		_, err := fmt.Fprintf(p.out, "%s\n", line)
		return err
	}
	now := time.Now().Format("15:04:05.000")
	if e.Order != 0 {
		text := fmt.Sprintf("%s  %-14s  order %d  %s on %s  by %s", now, plain(e.Kind), e.Order, plain(e.Action), names(e.Nodes), plain(e.By))
		if e.Reason != "" {
			text += "  (" + plain(cmp.Or(e.Why, e.Reason)) + ")"
		}
		_, err := fmt.Fprintln(p.out, text)
		return err
	}
	text := fmt.Sprintf("%s  %-10s  %s  %s", now, plain(e.Kind), names(e.Locks), plain(e.Owner))
	if e.Fence != 0 {
		text += fmt.Sprintf("  fence %d", e.Fence)
	}
	if e.Mode != "exclusive" && e.Mode != "" {
		text += "  " + plain(e.Mode)
	}
	if e.Kind == "suspended" {
		text += "  (by " + plain(e.By) + ", job in " + dash(e.Context) + ")"
	}
	if e.Cause != "" {
		text += "  (" + plain(e.Cause)
		if e.By != "" {
			text += " by " + plain(e.By)
		}
		text += ")"
	}
	_, err := fmt.Fprintln(p.out, text)
	return err
}
