package checkpoint

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var benchSizes = flag.String("megabytes", "10,100", "sizes of the processes of BenchmarkCheckpoint")

// BenchmarkCheckpoint checkpoints a process that runs on, by turns with CRIU alone and with
// this package. It reports, as medians and their ratio, how long the process stood still by
// CRIU's clock; the longest time for which the process itself did not run, which on a busy
// machine has the scheduler's share; and how long each took altogether.
func BenchmarkCheckpoint(b *testing.B) {
	c := need(b)
	for size := range strings.SplitSeq(*benchSizes, ",") {
		b.Run(size+"MB", func(b *testing.B) {
			j := begin(b, "memory", size)
			var pauses, gaps, took [2][]time.Duration
			for first := 0; b.Loop(); first = 1 - first {
				for _, who := range []int{first, 1 - first} {
					j.gap(b) // forget what was before
					since := time.Now()
					var pause time.Duration
					if who == 0 {
						pause = plainDump(b, c, j.pid())
					} else {
						_, r := j.save(b, func(o *Order) { o.Signal = 0 })
						pause = r.Pause
					}
					took[who] = append(took[who], time.Since(since))
					gaps[who] = append(gaps[who], j.gap(b))
					pauses[who] = append(pauses[who], pause)
				}
			}
			for _, m := range []struct {
				name string
				of   [2][]time.Duration
			}{{"pause", pauses}, {"gap", gaps}, {"total", took}} {
				plain, ours := median(m.of[0]), median(m.of[1])
				b.ReportMetric(float64(plain.Microseconds())/1e3, "criu-"+m.name+"-ms")
				b.ReportMetric(float64(ours.Microseconds())/1e3, m.name+"-ms")
				b.ReportMetric(float64(ours)/float64(plain), m.name+"-ratio")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// gap is the longest time that a process in the role memory stood still since the last
// call.
func (j *job) gap(tb testing.TB) time.Duration {
	tb.Helper()
	n := len(j.lines())
	_ = syscall.Kill(j.pid(), syscall.SIGUSR1)
	j.await(tb, "its gap", func() bool { return len(j.lines()) > n })
	fields := strings.Fields(j.lines()[n])
	us, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		tb.Fatal(err)
	}
	return time.Duration(us) * time.Microsecond
}

func plainDump(b *testing.B, c *CRIU, pid int) (pause time.Duration) {
	b.Helper()
	dir, err := os.MkdirTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	out, err := exec.CommandContext(context.Background(), c.Path, "dump", "-t", strconv.Itoa(pid), "-D", dir, "-o", filepath.Join(dir, "log"),
		"--shell-job", "--leave-running").CombinedOutput()
	if err != nil {
		b.Fatal(fmt.Sprint(err, string(out)))
	}
	return readPause(dir)
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}
