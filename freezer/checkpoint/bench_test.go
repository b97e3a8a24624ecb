package checkpoint

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
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

// leastRounds is of how many rounds a median is judged: a process is late by chance more often
// than in half of them only if the machine is overloaded, and then for CRIU as for us.
const leastRounds = 5

// fixedTime is what a checkpoint may take beside the disk whatever its size, for the second
// fsync, of the directory, and the end of the keeper.
const fixedTime = 50 * time.Millisecond

// BenchmarkCheckpoint checkpoints a process that runs on, by turns with CRIU alone and with
// this package, and then writes as many bytes to the same disk (write and fsync) and sums as many. It
// reports medians, and their ratios:
//
//   - pause: how long the process stood still by CRIU's clock. It fails at more than 1.2 times
//     CRIU's.
//   - gap: the longest time for which the process itself did not run, which on a busy machine
//     has the scheduler's share.
//   - total: how long it took altogether. CRIU leaves it to the kernel when its images get to
//     the disk.
//   - safe: how long it took from the images to the file on the disk and the end of it all, beside
//     disk, what the disk alone takes. It fails at more than twice that, and fixedTime: then it would not
//     be the disk that bounds a checkpoint.
//   - hash: the sum alone. It fails at more than half of the disk.
func BenchmarkCheckpoint(b *testing.B) {
	c := need(b)
	for size := range strings.SplitSeq(*benchSizes, ",") {
		b.Run(size+"MB", func(b *testing.B) {
			j := begin(b, "memory", size)
			times := map[string][]time.Duration{}
			note := func(name string, d time.Duration) { times[name] = append(times[name], d) }
			plain := func() {
				j.gap(b) // forget what was before
				since := time.Now()
				pause := plainDump(b, c, j.pid())
				note("criu-total", time.Since(since))
				note("criu-gap", j.gap(b))
				note("criu-pause", pause)
			}
			ours := func() {
				j.gap(b)
				since := time.Now()
				var copied time.Time
				file, r := j.save(b, func(o *Order) { o.Signal, o.Copied = 0, func() { copied = time.Now() } })
				note("total", time.Since(since))
				note("safe", time.Since(copied))
				note("gap", j.gap(b))
				note("pause", r.Pause)
				note("hash", sumAlone(b, file))
				note("disk", diskAlone(b, j.path("bytes"), r.Size))
			}
			round := func() {
				if len(times["pause"])%2 == 0 {
					plain()
					ours()
				} else {
					ours()
					plain()
				}
			}
			for b.Loop() {
				round()
			}
			for len(times["pause"]) < leastRounds {
				round()
			}
			for name, all := range times {
				b.ReportMetric(float64(median(all).Microseconds())/1e3, name+"-ms")
			}
			ratio := func(name, of string) float64 { return float64(median(times[name])) / float64(median(times[of])) }
			for _, name := range []string{"pause", "gap", "total"} {
				b.ReportMetric(ratio(name, "criu-"+name), name+"-ratio")
			}
			b.ReportMetric(ratio("safe", "disk"), "safe-ratio")
			b.ReportMetric(ratio("hash", "disk"), "hash-ratio")
			b.ReportMetric(0, "ns/op")
			if r := ratio("pause", "criu-pause"); r > 1.2 {
				b.Errorf("it stood still for %.2f times as long as CRIU takes, and 1.2 is promised", r)
			}
			if safe, disk := median(times["safe"]), median(times["disk"]); safe > 2*disk+fixedTime {
				b.Errorf("it took %v to make the file safe, and the disk alone takes %v", safe, disk)
			}
			if r := ratio("hash", "disk"); r > 0.5 {
				b.Errorf("to sum takes %.2f of the time that the disk takes", r)
			}
		})
	}
}

// diskAlone is how long it takes to write so many bytes to a new file and to the disk.
func diskAlone(b *testing.B, path string, size int64) time.Duration {
	b.Helper()
	data := make([]byte, copyBuffer)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	since := time.Now()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	for ; err == nil && size > 0; size -= int64(len(data)) {
		_, err = f.Write(data[:min(size, int64(len(data)))])
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), os.Remove(path))
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(since)
}

// sumAlone is how long it takes to sum the bytes of a file.
func sumAlone(b *testing.B, path string) time.Duration {
	b.Helper()
	since := time.Now()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyBuffer(crc32.New(castagnoli), onlyReader{f}, make([]byte, copyBuffer)); err != nil {
		b.Fatal(err)
	}
	return time.Since(since)
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
