package db

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Usage is what a node's process has open.
type Usage struct {
	Goroutines int
	Files      int // file descriptors
}

// Usage reads /metrics.
func (n *Node) Usage(ctx context.Context) (u Usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", n.http+"/metrics", nil)
	if err != nil {
		return u, err
	}
	resp, err := observer.Do(req)
	if err != nil {
		return u, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return u, err
	}
	seen := 0
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		name, value, _ := strings.Cut(sc.Text(), " ")
		var into *int
		switch name {
		case "go_goroutines":
			into = &u.Goroutines
		case "process_open_fds":
			into = &u.Files
		default:
			continue
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return u, fmt.Errorf("%s of %s: %w", name, n.Name, err)
		}
		*into = int(f)
		seen++
	}
	if seen != 2 {
		return u, fmt.Errorf("%s does not say how many goroutines and files it has", n.Name)
	}
	return u, nil
}
