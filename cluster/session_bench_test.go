package cluster

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// BenchmarkWire is a lock and its release as clients see them, on one server:
// what the line protocol and its sockets cost.
func BenchmarkWire(b *testing.B) {
	for _, fake := range []bool{true, false} {
		b.Run(fmt.Sprintf("fake=%v", fake), func(b *testing.B) {
			var node sessionNode
			if fake {
				node = newFakeNode(b)
			} else {
				f := newFarm(b, 1)
				f.leader()
				node = nodeForSessions{f.nodes[0]}
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			must(b, err)
			s := startServer(node, []net.Listener{ln}, serverConfig{Logger: testLogger("n")})
			b.Cleanup(s.close)
			b.Run("pipelined", func(b *testing.B) {
				c := dialTest(b, ln.Addr())
				c.SetDeadline(time.Time{})
				b.ResetTimer()
				go io.WriteString(c, "user U\nlocks A\nblock 1\n"+strings.Repeat("LOCK\nUNLOCK\n", b.N)+"EOF\n")
				n, err := io.Copy(io.Discard, bufio.NewReader(c))
				if want := int64(b.N) * int64(len("owner U\nlocked 1\nlockname A\n\n\nowner \nlocked 0\n\n\n")); n != want || err != nil {
					b.Fatalf("%d of %d bytes, %v", n, want, err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
			})
			b.Run("connections", func(b *testing.B) {
				for b.Loop() {
					for _, verb := range []string{"LOCK", "UNLOCK"} {
						c, err := net.Dial("tcp", ln.Addr().String())
						must(b, err)
						io.WriteString(c, "user U\nlocks A\nblock 1\ntimeout 600\n"+verb+"\n\nEOF\n\n")
						io.Copy(io.Discard, c)
						c.Close()
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
			})
		})
	}
}
