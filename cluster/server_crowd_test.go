package cluster

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Of every three clients of the crowd, one says nothing, one half a request, and
// one waits.
var crowdSays = [...]string{"", "user slow\nloc", "user W%d\nlocks a\nblock 1\nLOCK\n"}

// TestCrowdClient is the crowd: a process of its own, for its descriptors. It
// does nothing unless TestCrowd has started it.
func TestCrowdClient(t *testing.T) {
	addr := os.Getenv("LOCKERD_TEST_CROWD")
	if addr == "" {
		return
	}
	var size int
	fmt.Sscan(os.Getenv("LOCKERD_TEST_CROWD_SIZE"), &size)
	conns := make([]net.Conn, size)
	for i := range conns {
		c, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			t.Fatal(i, err)
		}
		defer c.Close()
		conns[i] = c
		say := crowdSays[i%len(crowdSays)]
		if i%len(crowdSays) == 2 {
			say = fmt.Sprintf(say, i)
		}
		io.WriteString(c, say)
	}
	fmt.Println("all connected")
	io.Copy(io.Discard, os.Stdin)
}

// TestCrowd: ten thousand connections cost little memory and nobody's time, and
// when they end all at once nothing of them is left.
func TestCrowd(t *testing.T) {
	size := 10_000
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err == nil && r.Cur < 2*uint64(size) {
		size = int(r.Cur) / 2
		t.Logf("%d connections, as the limit on open files allows", size)
	}
	n := newFakeNode(t)
	n.lockAs(t, "X", "a")
	s, addr := startTestServer(t, n, "tcp", nil)
	before := memory()

	crowd := exec.Command(os.Args[0], "-test.run=^TestCrowdClient$", "-test.count=1")
	crowd.Env = append(os.Environ(), "LOCKERD_TEST_CROWD="+addr.String(), fmt.Sprint("LOCKERD_TEST_CROWD_SIZE=", size))
	stdin, err := crowd.StdinPipe()
	must(t, err)
	stdout, err := crowd.StdoutPipe()
	must(t, err)
	must(t, crowd.Start())
	defer crowd.Wait()
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "all connected\n" {
		t.Fatalf("the crowd says %q, %v", line, err)
	}
	must(t, waitUntil("all are served", func() bool { return s.clients() == size && n.queueLen("a") == size/3 }))

	begin := time.Now()
	mustServe(t, addr)
	if d := time.Since(begin); d > time.Second {
		t.Errorf("another client waits %v", d)
	}
	each := (memory() - before) / size
	t.Logf("%d bytes a connection", each)
	if each > 16<<10 {
		t.Errorf("%d bytes a connection", each)
	}
	must(t, crowd.Process.Kill())
	must(t, waitUntil("all have gone", func() bool { return s.clients() == 0 && n.queueLen("a") == 0 }))
}

// memory is what the heap and the stacks take, in bytes.
func memory() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
