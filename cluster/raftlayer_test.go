package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/transport"
)

func TestRaftLayer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := transport.NewMux(ln)
	share := m.Listen('R')
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	defer func() {
		m.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	public := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1753}
	l := newRaftLayer(share, new(transport.Dialer).Dial, 'R', "n1", public)
	if l.Addr() != net.Addr(public) {
		t.Errorf("Addr = %v, want what is advertised", l.Addr())
	}
	out, err := l.Dial(joinTarget("n1", raft.ServerAddress(share.Addr().String())), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go out.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, []byte("hello")) {
		t.Fatalf("read %q, %v", got, err)
	}

	// For a server that was at this address before, and one that says nothing.
	for _, other := range []raft.ServerID{"n2", ""} {
		out, err := l.Dial(joinTarget(other, raft.ServerAddress(share.Addr().String())), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if in, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		go out.Write([]byte("hello"))
		for range 2 {
			if n, err := in.Read(got); !errors.Is(err, errOtherServer) {
				t.Errorf("for %q: read %d bytes, %v", other, n, err)
			}
		}
	}
	for _, target := range []raft.ServerAddress{"x", raft.ServerAddress(strings.Repeat("x", maxTarget+1)) + "@x"} {
		if c, err := l.Dial(target, time.Second); err == nil {
			c.Close()
			t.Errorf("%s was dialed", target)
		}
	}

	hang := newRaftLayer(share, func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}, 'R', "n1", nil)
	failed := make(chan error, 1)
	go func() {
		_, err := hang.Dial("n1@x", 0)
		failed <- err
	}()
	hang.Close()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a dial when the layer closed: %v", err)
	}
}
