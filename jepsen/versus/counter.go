package versus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// Counter is a test in which processes add 1 to a number in a file.
type Counter struct {
	Processes int           `json:"processes"` // at a time
	Times     int           `json:"times"`     // that each adds 1, one lock client after the other
	Pauses    int           `json:"pauses"`    // so many holders are stopped
	Pause     time.Duration `json:"pause_ns"`  // for so long
	TTL       time.Duration `json:"ttl_ns"`    // of leases, where there are any
}

const (
	maxProcesses = 200
	maxTimes     = 10_000
	maxPauses    = 1000
	maxTTL       = 10 * time.Minute
	minTTL       = 2 * time.Second // etcd grants no shorter ones: 3/2 of its election timeout, rounded up
)

// WithDefaults fills in how long a pause is if that was left open: longer than the
// lease by more than the time that etcd takes to end one that has run out.
func (t Counter) WithDefaults() Counter {
	if t.Pause == 0 {
		t.Pause = 2*t.TTL + 2*time.Second
	}
	return t
}

// Validate says what is wrong with the test.
func (t Counter) Validate() error {
	return errors.Join(
		within("--processes", t.Processes, 2, maxProcesses), within("--times", t.Times, 1, maxTimes),
		within("--pauses", t.Pauses, 0, min(maxPauses, t.Processes*t.Times)),
		validTTL(t.TTL), pauseAbove(t.Pause, t.TTL),
	)
}

func within(what string, n, least, most int) error {
	if n < least || n > most {
		return fmt.Errorf("%s %d: it can be %d to %d", what, n, least, most)
	}
	return nil
}

func validTTL(ttl time.Duration) error {
	if ttl < minTTL || ttl > maxTTL || ttl%time.Second != 0 {
		return fmt.Errorf("--ttl %v: it can be whole seconds from %v to %v", ttl, minTTL, maxTTL)
	}
	return nil
}

func pauseAbove(pause, ttl time.Duration) error {
	if pause <= ttl || pause > 2*maxTTL+time.Minute {
		return fmt.Errorf("--pause %v: it has to be longer than a lease of %v", pause, ttl)
	}
	return nil
}

// Count is what came of a run of Counter with one way to lock.
type Count struct {
	Increments int     `json:"increments"` // commands that have added 1, as far as they know
	Number     int     `json:"number"`     // in the file at the end; it began with 0
	Lost       int     `json:"lost"`       // the difference
	Pauses     int     `json:"pauses"`     // holders that were stopped
	Failed     int     `json:"failed"`     // commands that never ran, or did not come to their end
	Why        string  `json:"why,omitempty"`
	Seconds    float64 `json:"seconds"`
}

// points are the reads after which the holder is stopped, spread over all of a run.
// The first read is number 1.
func points(reads, pauses int) map[int]bool {
	at := map[int]bool{}
	for i := range pauses {
		at[(i+1)*reads/(pauses+1)+1] = true
	}
	return at
}

const (
	clientTime = time.Minute      // for a lock to be granted, beside the pauses before
	endTime    = 30 * time.Second // for a lock client to end after its command
)

// counting is a run of Counter under way.
type counting struct {
	Counter
	l     *locker
	dir   string
	file  string
	at    map[int]bool
	limit time.Duration

	mu    sync.Mutex
	reads int
	count Count
}

// count runs the test once.
func (t Counter) count(ctx context.Context, p Programs, l *locker, dir string, pauses int) (Count, error) {
	c := &counting{
		Counter: t, l: l, dir: dir, at: points(t.Processes*t.Times, pauses),
		file:  filepath.Join(dir, fmt.Sprintf("number-%d", pauses)),
		limit: clientTime + time.Duration(pauses)*t.Pause,
	}
	if err := writeNumber(c.file, 0); err != nil {
		return Count{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := monotonic()
	var all sync.WaitGroup
	for i := range t.Processes {
		all.Go(func() {
			if err := c.process(ctx, p.Self, i); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return Count{}, context.Cause(ctx)
	}
	var err error
	if c.count.Number, err = readNumber(c.file); err != nil {
		return Count{}, err
	}
	c.count.Lost = c.count.Increments - c.count.Number
	c.count.Seconds = (monotonic() - began).Seconds()
	return c.count, nil
}

// process adds 1 again and again, each time with a new lock client.
func (c *counting) process(ctx context.Context, self string, i int) error {
	ln, err := listen(fmt.Sprintf("jx-versus-%d", i))
	if err != nil {
		return err
	}
	defer ln.Close()
	for range c.Times {
		lc, err := c.l.run(c.dir, i, "counter", self, IncrementCommand, ln.name(), c.file)
		if err != nil {
			return err
		}
		err = c.increment(ctx, ln, lc)
		if over := lc.end(ctx, endTime); err == nil {
			err = over
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			c.mu.Lock()
			c.count.Failed++
			c.count.Why = err.Error()
			c.mu.Unlock()
		}
	}
	return nil
}

// increment goes with one command from its read to its write.
func (c *counting) increment(ctx context.Context, ln listener, lc *client) error {
	conn, said, err := ln.accept(ctx, lc, c.limit)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := hear(said, "read"); err != nil {
		return err
	}
	if c.stopsHere() {
		if err := stopAll(lc.pid()); err != nil {
			return err
		}
		// It is told to write while it is stopped: nothing is between the end of the
		// pause and the write.
		fmt.Fprintln(conn, "write")
		pause(ctx, c.Pause)
		continueAll(lc.pid())
	} else {
		fmt.Fprintln(conn, "write")
	}
	if _, err := hear(said, "wrote"); err != nil {
		return err
	}
	c.mu.Lock()
	c.count.Increments++
	c.mu.Unlock()
	return nil
}

func hear(said *bufio.Reader, word string) (n int, err error) {
	line, err := said.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("the command ended before it %s: %w", word, err)
	}
	return n, parseLine(line, word, &n)
}

// stopsHere counts a read, and says whether its holder is to be stopped.
func (c *counting) stopsHere() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	if c.at[c.reads] {
		c.count.Pauses++
		return true
	}
	return false
}

// Run runs the test with all that is installed, one after the other.
func (t Counter) Run(ctx context.Context, p Programs) (CounterReport, error) {
	r := CounterReport{Counter: t, Machine: machine(p.Dir)}
	systems := []func(dir string) *locker{
		func(string) *locker { return unlocked() },
		func(dir string) *locker { return lockersh(p, dir) },
		func(dir string) *locker { return leased(p, dir, t.TTL) },
	}
	if p.installed() {
		systems = append(systems, func(dir string) *locker { return etcd(p, dir, t.TTL) })
	}
	for i, system := range systems {
		dir, err := p.place(fmt.Sprint("system-", i))
		if err != nil {
			return r, err
		}
		c, err := t.column(ctx, p, system(dir), dir)
		if err != nil {
			return r, fmt.Errorf("%s: %w", c.Title, err)
		}
		r.Columns = append(r.Columns, c)
	}
	if !p.installed() {
		r.Columns = append(r.Columns, CounterColumn{Title: etcdTitle(t.TTL), Missing: notInstalled})
	}
	return r, nil
}

func (t Counter) column(ctx context.Context, p Programs, l *locker, dir string) (c CounterColumn, err error) {
	c = CounterColumn{Title: l.title, About: l.about}
	defer l.stop()
	if err := l.start(ctx); err != nil {
		return c, err
	}
	if c.Control, err = t.count(ctx, p, l, dir, 0); err != nil || t.Pauses == 0 {
		return c, err
	}
	paused, err := t.count(ctx, p, l, dir, t.Pauses)
	c.Paused = &paused
	return c, err
}
