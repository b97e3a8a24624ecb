package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/lockerd/lockerd/jepsen/history"
)

// ProberCommand is the command of the program itself that runs Prober.
const ProberCommand = "prober"

const (
	// probeEvery is the time from one answer to the next question.
	probeEvery = 40 * time.Millisecond
	// probePatience is how long the end of a run waits for the last answer: longer than
	// any freeze may last.
	probePatience = 15 * time.Second
)

// Prober answers each line with a line, as long as it may run, and after it has written
// to a file system if it is given a directory of one.
func Prober(args []string, in io.Reader, out io.Writer) error {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		for _, dir := range args {
			f, err := os.OpenFile(filepath.Join(dir, "probe"), os.O_CREATE|os.O_WRONLY|os.O_SYNC, 0o600)
			if err != nil {
				return err
			}
			_, err = f.WriteString("x")
			if err := f.Close(); err != nil {
				return err
			}
			if err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintln(out); err != nil {
			return err
		}
	}
	return nil
}

// prober is such a process, seen from outside. What it probes moved at some moment
// between a question and its answer.
type prober struct {
	target string
	cmd    *exec.Cmd
	ask    io.WriteCloser
	hear   *bufio.Scanner
	number int
}

func (e *Env) startProber(target string, dirs ...string) (*prober, error) {
	p := &prober{target: target, cmd: exec.Command("/proc/self/exe", append([]string{ProberCommand}, dirs...)...), number: e.process()}
	var err error
	if p.ask, err = p.cmd.StdinPipe(); err == nil {
		var out io.Reader
		if out, err = p.cmd.StdoutPipe(); err == nil {
			p.hear = bufio.NewScanner(out)
			err = p.cmd.Start()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start a prober: %w", err)
	}
	return p, nil
}

// run probes until ctx ends, and then until the last answer has come, or will not.
func (p *prober) run(ctx context.Context, rec *history.Recorder) {
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		for p.hear.Scan() {
			answers <- struct{}{}
		}
	}()
	note := history.Op{Process: p.number, Type: history.Info, F: history.Probe, Locks: []string{p.target}}
	for pause(ctx, probeEvery) == nil {
		asked := rec.Now()
		if _, err := fmt.Fprintln(p.ask); err != nil {
			break
		}
		answered := false
		select {
		case _, answered = <-answers:
		case <-ctx.Done():
			select {
			case _, answered = <-answers:
			case <-time.After(probePatience):
			}
		}
		if note.Took = rec.Now() - asked; !answered {
			note.Error = "no answer"
		}
		rec.Add(note)
		if !answered {
			break
		}
	}
	_ = p.ask.Close()
	_ = p.cmd.Process.Kill()
	if note.Error == "" { // else it may not even be killed
		for range answers {
		}
		_ = p.cmd.Wait() // it was killed
	}
}

// probing starts a prober for everything that may be frozen, and one for nothing of it,
// which shows how slow the machine is. The function returned ends them.
func (e *Env) probing() (end func(), err error) {
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	begin := func(target string, dirs ...string) (pid int) {
		if err != nil {
			return 0
		}
		var p *prober
		if p, err = e.startProber(target, dirs...); err != nil {
			return 0
		}
		all.Go(func() { p.run(ctx, e.Rec) })
		return p.cmd.Process.Pid
	}
	begin(history.Control, filepath.Dir(e.Data))
	for _, s := range e.Sites {
		begin("fs:"+s.Node, s.Volume)
		s.pid = begin("process:" + s.Node)
	}
	end = func() { stop(); all.Wait() }
	if err != nil {
		end()
	}
	return end, err
}
