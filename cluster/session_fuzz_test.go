package cluster

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/transport"
)

// FuzzSession: whatever a client sends, what it gets is well formed, the session
// ends when the client does, and no request of its goes on waiting.
func FuzzSession(f *testing.F) {
	files, _ := filepath.Glob("testdata/wire/*.txt")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var sent strings.Builder
		for line := range strings.Lines(string(b)) {
			if name, text, ok := strings.Cut(line, "> "); ok && len(name) == 1 {
				sent.WriteString(text)
			}
		}
		f.Add([]byte(sent.String()))
	}
	f.Add([]byte("proto 2\nuser U\nfence 1\nhostname h1\npid 4\nANCHOR\n\n"))
	f.Add([]byte("proto 2\nuser U\nlocks busy\nblock 1\nLOCK\nCANCEL\nLOCK\nUNLOCK\n"))
	cfg := &serverConfig{Idle: time.Minute, WriteTimeout: time.Minute, Logger: hclog.NewNullLogger()}
	f.Fuzz(func(t *testing.T, in []byte) {
		n := newFakeNode(t)
		n.lockAs(t, "X", "busy")
		near, far := net.Pipe()
		over := make(chan struct{})
		go func() {
			defer close(over)
			newSession(t.Context(), far, n, cfg).serve()
		}()
		replies := make(chan error, 1)
		go func() {
			r := transport.NewReplyReader(near)
			for {
				if _, err := r.Next(); err != nil {
					replies <- err
					return
				}
			}
		}()
		near.Write(in) // fails if the session ends before
		near.Close()
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			t.Fatal("the session does not end")
		}
		if err := <-replies; errors.Is(err, transport.ErrReply) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		if c := n.counts(); c.Waits > 0 {
			t.Errorf("%d waits are left", c.Waits)
		}
	})
}
