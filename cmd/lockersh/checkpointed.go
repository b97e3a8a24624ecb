package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/self"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
)

const (
	everyDefault      = 5 * time.Minute
	batchLeaseDefault = 30 * time.Second
	waitDefault       = time.Minute
	// leastEvery keeps a typing error from having a command stand still all the time.
	leastEvery = 100 * time.Millisecond
)

// readBatch is for a command that is to be checkpointed.
func (s *settings) readBatch(r *raw) error {
	switch {
	case r.checkpoint == "" && (r.zstd && !r.checkpointable || r.trust || time.Duration(r.every) != everyDefault):
		return errors.New("--checkpoint-every, --checkpoint-trust and --checkpoint-zstd go with --checkpoint")
	case r.checkpoint == "" && !r.checkpointable && time.Duration(r.wait) != waitDefault:
		return errors.New("--checkpoint-wait goes with --checkpoint or --checkpointable")
	case r.checkpoint == "" && !r.checkpointable:
		return nil
	case r.wait <= 0:
		return fmt.Errorf("--checkpoint-wait %v: it has to be more than nothing", time.Duration(r.wait))
	case r.exec:
		return errors.New("a checkpoint needs lockersh to stay and make it; --checkpoint and --checkpointable do not go with --exec")
	case r.waitAll:
		return errors.New("what is checkpointed is the command and what descends from it; --checkpoint and --checkpointable do not go with --wait-all")
	}
	s.batch = &batch{Compress: r.zstd, Verbose: r.verbose, Wait: time.Duration(r.wait), Trust: r.trust}
	s.batch.Lock = s.lockNames()
	if r.checkpoint == "" {
		return nil
	}
	if len(s.locker.Locks) != 1 || r.shared || r.slots > 0 {
		return errors.New("contexts are named by the lock: --checkpoint takes exactly one --lock, neither --shared nor --slots")
	}
	if time.Duration(r.every) < leastEvery {
		return fmt.Errorf("--checkpoint-every %v: it has to be %v at least", time.Duration(r.every), leastEvery)
	}
	var err error
	if s.batch.Name, err = seriesName(s.locker.Locks[0]); err != nil {
		return err
	}
	if s.batch.Dir, err = filepath.Abs(r.checkpoint); err != nil {
		return fmt.Errorf("--checkpoint %s: %w", r.checkpoint, err)
	}
	s.batch.Every = time.Duration(r.every)
	s.locker.NeedFence = true
	if r.lease == 0 {
		r.lease = getopt.Seconds(batchLeaseDefault)
		s.locker.Lease = batchLeaseDefault
	}
	return nil
}

// prepareBatch finds out what would keep a command from being checkpointed, before
// anybody waits for a lock, and has the job execute a runner instead of the command.
func prepareBatch(s *settings) (b *batch, code int, err error) {
	b = s.batch
	if b == nil {
		return nil, 0, nil
	}
	if err := job.Find(s.job.Argv); err != nil {
		return nil, job.StartCode(err), err
	}
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		if err := restorable(f); err != nil {
			return nil, exitUsage, err
		}
	}
	ctx := context.Background()
	criu, err := checkpoint.Find(ctx)
	if err == nil {
		err = criu.Preflight(ctx)
	}
	if err != nil {
		return nil, exitUnavailable, err
	}
	if b.Dir != "" {
		if err := b.tryDir(); err != nil {
			return nil, exitUsage, fmt.Errorf("--checkpoint: %w", err)
		}
		done, err := (&series{dir: b.Dir, name: b.Name}).lastEnding()
		if err != nil {
			return nil, exitInternal, err
		}
		b.Ended = done.Fence
	}
	text, err := json.Marshal(b)
	if err != nil {
		return nil, exitInternal, err
	}
	s.job.Path = "/proc/self/exe"
	s.job.Argv = append([]string{batchName, string(text)}, s.job.Argv...)
	return b, 0, nil
}

// tryDir finds out whether contexts can be made in the directory that would be restored.
func (b *batch) tryDir() error {
	if _, err := os.Stat(b.Dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no directory %s: make it first, where all hosts have it", b.Dir)
	}
	probe, err := os.CreateTemp(b.Dir, ".lockersh-*")
	if err != nil {
		return err
	}
	_ = probe.Close()
	defer os.Remove(probe.Name())
	if b.Trust {
		return nil
	}
	if err = checkpoint.Trust(b.Dir); err == nil {
		err = checkpoint.Trust(probe.Name()) // root's files may be another's there (exports(5))
	}
	if errors.Is(err, checkpoint.ErrUntrusted) {
		err = fmt.Errorf("%w, or say --checkpoint-trust", err)
	}
	return err
}

// restorable says whether the command's output can be opened again by whoever restores
// it.
func restorable(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("look at the output: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 0:
		return nil
	case st.Mode&unix.S_IFMT == unix.S_IFCHR && unix.Major(st.Rdev) == 1: // as /dev/null, mem(4)
		return nil
	}
	return fmt.Errorf("%s is no file, and could not be restored: send the output of a command that is checkpointed to one, as with >>LOG 2>&1", f.Name())
}

// notify takes over the signals. One that would end the command becomes one that saves
// it first; those that ask for a checkpoint count once there is something to save.
func (b *batch) notify(s *settings) <-chan os.Signal {
	all := job.Notify()
	s.job.Signals = all
	if b == nil {
		return all
	}
	asked := make(chan os.Signal, 8)
	signal.Notify(asked, self.SIGCKPT, self.SIGCKPTEXIT)
	translated := make(chan os.Signal)
	s.job.Signals = translated
	b.translate = func() {
		for len(asked) > 0 {
			<-asked
		}
		for { // as long as this process lives
			var sig os.Signal
			select {
			case sig = <-asked:
			case sig = <-all:
				if sig == syscall.SIGTERM && b.Dir != "" {
					b.terminated.Store(true)
					sig = sigDrain
				}
			}
			translated <- sig
		}
	}
	return all
}

// run is called when the command runs.
func (b *batch) run() {
	if b != nil {
		go b.translate()
	}
}

// status is the exit status for that of the runner: who was told to end by SIGTERM, and
// was saved first, was ended by that.
func (b *batch) status(code int) int {
	if b != nil && b.terminated.Load() && code == 128+int(self.SIGCKPTEXIT) {
		return 128 + int(syscall.SIGTERM)
	}
	return code
}

// mark is that of all processes of the job, in whatever hold: what is restored has the
// environment of the one in which it was started. Only the guard of a hold knows it, and not
// the one of a lockersh that waits beside it. Empty for a command that is not restored.
func (b *batch) mark() string {
	if b == nil || b.Dir == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(b.Dir + "\x00" + b.Name))
	return hex.EncodeToString(sum[:16])
}
