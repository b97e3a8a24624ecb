package pidprobe

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// burst asks many questions at once, of several lengths, and checks that each is
// answered, to whom it was asked by and with its own answer.
func burst(t *testing.T, conns []net.Conn, rounds int) (missing int) {
	t.Helper()
	own := os.Getpid()
	for round := range rounds {
		want := make([]map[string]bool, len(conns))
		for c, conn := range conns {
			want[c] = map[string]bool{}
			for i := range 40 {
				host := fmt.Sprintf("h%d-%d-%0*d", c, round, 1+i/8%3, i)
				pid, exists := own, 1
				if i%3 == 0 {
					pid, exists = 1<<31-1-i, 0
				}
				want[c][fmt.Sprintf("EXIS %d %d %s", pid, exists, host)] = true
				tell(t, conn, fmt.Sprintf("PIDR %d %s", pid, host))
			}
		}
		for c, conn := range conns {
			buf := make([]byte, 512)
			for len(want[c]) > 0 {
				_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				n, err := conn.Read(buf)
				if err != nil {
					missing += len(want[c])
					break
				}
				if !want[c][string(buf[:n])] {
					t.Fatalf("round %d, connection %d: answered %q", round, c, buf[:n])
				}
				delete(want[c], string(buf[:n]))
			}
		}
	}
	return missing
}

// listened are addresses to serve on, with sockets of each kind, and for each some
// by which the server can be reached.
var listened = map[string][]string{
	"":          {"127.0.0.1", "127.0.0.7", "::1"},
	"0.0.0.0":   {"127.0.0.1", "127.0.0.7"},
	"127.0.0.7": {"127.0.0.7"},
	"::1":       {"::1"},
}

func TestBurst(t *testing.T) {
	for host, reached := range listened {
		s := serve(t, host, ServerConfig{})
		var conns []net.Conn
		for _, addr := range reached {
			conns = append(conns, dialServer(t, s, addr), dialServer(t, s, addr))
		}
		if missing := burst(t, conns, 20); missing > 0 {
			t.Errorf("on %v, %d answers are missing", s.Addr(), missing)
		}
	}
}

// Where the kernel refuses to cut messages up, answers leave one by one.
func TestBurstWithoutSegments(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	raw, err := s.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		// Segments need checksums.
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	conns := []net.Conn{dialServer(t, s, "127.0.0.1"), dialServer(t, s, "127.0.0.1")}
	// One message at most is lost on the way to know; it is one of some answers.
	if missing := burst(t, conns, 10); missing > batchSize {
		t.Errorf("%d answers are missing", missing)
	}
	if missing := burst(t, conns, 10); missing > 0 {
		t.Errorf("%d answers are missing afterwards", missing)
	}
}
