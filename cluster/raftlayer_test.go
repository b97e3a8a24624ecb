package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
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
	l := newRaftLayer(share, new(transport.Dialer).Dial, 'R', public)
	if l.Addr() != net.Addr(public) {
		t.Errorf("Addr = %v, want what is advertised", l.Addr())
	}
	out, err := l.Dial(raft.ServerAddress(share.Addr().String()), time.Second)
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

	hang := newRaftLayer(share, func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}, 'R', nil)
	failed := make(chan error, 1)
	go func() {
		_, err := hang.Dial("x", 0)
		failed <- err
	}()
	hang.Close()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a dial when the layer closed: %v", err)
	}
}
