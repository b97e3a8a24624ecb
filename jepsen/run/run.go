package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/workload"
)

const (
	startTime      = 30 * time.Second       // for a cluster to become ready
	recoverTime    = 30 * time.Second       // for it to do so again after the last heal
	superviseEvery = time.Second            // nodes that have ended are started again
	afterwards     = 3 * time.Second        // clients go on so long after that
	workTime       = 20 * time.Second       // and so long at most until they have done what they are for
	cleanTime      = 15 * time.Second       // for what abandoned users hold to be ended
	agreeTime      = 10 * time.Second       // for all nodes to be at one index
	lookEvery      = 100 * time.Millisecond // between two looks at who leads, or who holds what
)

// session is a run under way.
type session struct {
	Config
	work     workload.Workload
	rec      *history.Recorder
	cluster  *db.Cluster
	env      *workload.Env
	freezing func(string, bool)
	clocks   []ClockSample
}

// Run does a run in the sandbox that this process is in, and stores its history.
func Run(ctx context.Context, c Config) (in check.Input, err error) {
	if err := c.Validate(); err != nil {
		return in, err
	}
	dir, freezing, err := Enter()
	if err != nil {
		return in, err
	}
	s := &session{Config: c, rec: history.NewRecorder(), freezing: freezing}
	s.work, _ = workload.Named(c.Workload)
	s.cluster, err = db.New(db.Options{Binary: c.Binary, Nodes: c.Nodes, Disks: dir, Logs: c.Store, Pidstatd: s.pidstatd(), Volumes: s.work.Freezes})
	if err != nil {
		return in, err
	}
	for _, n := range s.cluster.Nodes {
		if n.Volume != nil {
			s.freezing(n.Volume.Dir, true) // it may be at any time
		}
	}
	in, err = s.run(ctx)
	in.End.Ended = s.ended()
	for _, n := range s.cluster.Nodes {
		if n.Volume != nil {
			s.freezing(n.Volume.Dir, false)
		}
	}
	err = errors.Join(err, s.cluster.Close())
	in.End.Logs, in.End.Installs = readLogs(c.Store)
	if s.Clocks {
		err = errors.Join(err, history.WriteLines(filepath.Join(c.Store, clockFile), s.clocks))
	}
	return in, errors.Join(err, Save(c.Store, in))
}

// pidstatd is the program for a host without a node, if there is to be one.
func (s *session) pidstatd() string {
	if !s.work.Far {
		return ""
	}
	return s.Pidstatd
}

func (s *session) run(ctx context.Context) (in check.Input, err error) {
	start, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := s.cluster.AwaitReady(start); err != nil {
		return in, err
	}
	tail := s.cluster.Follow(s.rec.Now)
	stopped := false
	defer func() {
		if !stopped {
			in.Events, _ = tail.Stop()
		}
	}()
	if err := tail.AwaitLive(start, s.cluster); err != nil {
		return in, err
	}
	s.env = &workload.Env{
		Rec: s.rec, Seed: s.Seed, Clients: s.Clients, Locks: s.Locks, Rate: s.Rate,
		Guard: !s.NoGuard, Break: s.breaker, Raw: s.Raw,
	}
	if far := s.cluster.Far; far != nil {
		s.env.Far, s.env.HostName = far.Host.Within, far.Host.IP
	} else if s.env.HostName, err = os.Hostname(); err != nil {
		return in, err
	}
	for _, n := range s.cluster.Nodes {
		s.env.Hosts = append(s.env.Hosts, n.Client())
		if n.Volume != nil {
			s.env.Data = s.cluster.Data()
			s.env.Sites = append(s.env.Sites, &workload.Site{Node: n.Name, Admin: n.Admin(), Volume: n.Volume.Dir})
		}
	}
	end := check.End{Workload: s.Workload, Loses: s.work.Loses, Guard: !s.NoGuard, Nemesis: len(s.Nemesis) > 0}
	if slices.ContainsFunc(s.Nemesis, nemesis.Hastens) {
		end.Hasten = nemesis.Fastest
	}
	before := s.usage(ctx)
	err = s.faultsAndClients(ctx, &end)
	if err == nil {
		err = s.conclude(ctx, &end)
	}
	if err == nil {
		end.Growth = s.growth(ctx, before)
	}
	end.Set = s.env.Register.Set()
	s.awaitFence(tail, end.Fence)
	events, unread := tail.Stop()
	stopped = true
	return check.Input{Ops: s.rec.Ops(), Events: events, End: end}, errors.Join(err, unread)
}

// faultsAndClients runs until the clients have worked for a while on a cluster that
// has recovered from the last fault.
func (s *session) faultsAndClients(ctx context.Context, end *check.End) error {
	background, stop := context.WithCancel(ctx)
	var behind sync.WaitGroup
	defer func() { stop(); behind.Wait() }()
	behind.Go(func() { s.watchLeader(background) })
	behind.Go(func() { s.janitor(background) })
	behind.Go(func() { s.watchClocks(background) })

	clients, stopClients := context.WithCancel(ctx)
	defer stopClients()
	worked := make(chan error, 1)
	go func() { worked <- s.work.Run(clients, s.env) }()

	faults, stopFaults := context.WithTimeout(ctx, s.Time)
	defer stopFaults()
	rhythm := s.Rhythm
	if rhythm == (gen.Rhythm{}) {
		rhythm = gen.DefaultRhythm
	}
	schedule := gen.Schedule(s.Seed, s.Nemesis, s.Time, rhythm)
	err := nemesis.Run(faults, &nemesis.Env{Cluster: s.cluster, Rec: s.rec, Freezing: s.freezing, Clocks: s.Clocks}, schedule)
	if err == nil {
		<-faults.Done()
		end.Healed = s.rec.Now()
		err = s.recovered(ctx, end)
	}
	if err == nil {
		s.goOn(ctx, end.Healed)
	}
	stopClients()
	return errors.Join(err, <-worked, ctx.Err())
}

// goOn returns when clients have worked for a while after the last heal. A short run may
// have had no moment for an order of all nodes, or the like; or all locks are held still by
// processes whose death is to be noticed: then they are given longer.
func (s *session) goOn(ctx context.Context, healed time.Duration) {
	_ = sleep(ctx, afterwards)
	for until := time.Now().Add(workTime); !s.done(healed) && time.Now().Before(until) && ctx.Err() == nil; {
		_ = sleep(ctx, lookEvery)
	}
}

// done says whether clients have done what they are for, and got a lock since all is healed.
func (s *session) done(healed time.Duration) bool {
	ops := s.rec.Ops()
	return check.Worked(s.Workload, ops) && slices.ContainsFunc(ops, func(op history.Op) bool {
		return op.F == history.Acquire && op.Type == history.OK && op.Time > healed
	})
}

// recovered waits until all nodes serve. That they do not is a finding, no error.
func (s *session) recovered(ctx context.Context, end *check.End) error {
	wait, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	var err error
	for {
		// Each node may take its time to end, and is then started again.
		try, cancel := context.WithTimeout(wait, superviseEvery)
		err = errors.Join(nemesis.Supervise(s.cluster), s.cluster.AwaitReady(try))
		cancel()
		if err == nil || wait.Err() != nil {
			break
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		s.rec.Add(history.Op{Process: history.Nemesis, Type: history.Info, F: "recovery", Error: err.Error()})
		return nil
	}
	end.Recover = s.rec.Now() - end.Healed
	return nil
}

// conclude looks at what is left when all clients have stopped.
func (s *session) conclude(ctx context.Context, end *check.End) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTime+agreeTime)
	defer cancel()
	var err error
	for until := time.Now().Add(cleanTime); time.Now().Before(until); {
		if end.Kept, err = s.clean(ctx); err == nil && len(end.Kept) == 0 {
			break
		}
		if sleep(ctx, lookEvery) != nil {
			break
		}
	}
	if err != nil {
		end.Kept = append(end.Kept, fmt.Sprintf("the table could not be read: %v", err))
	}
	for until := time.Now().Add(agreeTime); time.Now().Before(until) && !end.Agree; {
		end.Digests, end.Fence, end.Agree = s.digests(ctx)
		if sleep(ctx, lookEvery) != nil {
			break
		}
	}
	return nil
}

// digests asks all nodes for their tables' digests, and says whether they are of
// one index.
func (s *session) digests(ctx context.Context) (list []check.Digest, fence uint64, one bool) {
	one = true
	for _, n := range s.cluster.Nodes {
		st, err := n.Status(ctx, true)
		if err != nil {
			return list, fence, false
		}
		list = append(list, check.Digest{Node: n.Name, Index: st.Index, Digest: st.Digest})
		one = one && st.Index == list[0].Index
		if st.Counts != nil {
			fence = max(fence, st.Counts.Fence)
		}
	}
	return list, fence, one
}

// awaitFence gives the streams a moment to tell of the last fence.
func (s *session) awaitFence(tail *db.Tail, fence uint64) {
	for until := time.Now().Add(time.Second); time.Now().Before(until) && tail.Fence() < fence; {
		time.Sleep(lookEvery / 5)
	}
}

// ended lists the servers that have ended by themselves.
func (s *session) ended() []string {
	var all []string
	for _, n := range s.cluster.Nodes {
		all = append(all, n.EndedAlone()...)
	}
	if far := s.cluster.Far; far != nil {
		all = append(all, far.EndedAlone()...)
	}
	return all
}

// installed is what Raft says when it has been sent a snapshot.
const installed = "Installed remote snapshot"

// readLogs finds the lines of the servers' logs that no server may write, and counts
// the snapshots that they were sent.
func readLogs(dir string) (complaints []string, installs int) {
	logs, _ := filepath.Glob(filepath.Join(dir, "lockerd-*.log"))
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			complaints = append(complaints, err.Error())
			continue
		}
		for line := range strings.Lines(string(b)) {
			bad := slices.ContainsFunc([]string{"panic: ", "fatal error: ", "WARNING: DATA RACE"}, func(w string) bool { return strings.HasPrefix(line, w) })
			if bad {
				complaints = append(complaints, filepath.Base(path)+": "+line)
			}
			if strings.Contains(line, installed) {
				installs++
			}
		}
	}
	return complaints, installs
}

// Names of the files of a stored run.
const (
	opsFile    = "history.jsonl"
	ednFile    = "history.edn"
	eventsFile = "events.jsonl"
	endFile    = "end.json"
	configFile = "config.json"
	resultFile = "results.json"
	sumFile    = "summary.json"
)

// Save stores the history of a run.
func Save(dir string, in check.Input) error {
	var edn bytes.Buffer
	return errors.Join(
		history.WriteEDN(&edn, in.Ops),
		os.WriteFile(filepath.Join(dir, ednFile), edn.Bytes(), 0o644),
		history.WriteLines(filepath.Join(dir, opsFile), in.Ops),
		history.WriteLines(filepath.Join(dir, eventsFile), in.Events),
		writeJSON(filepath.Join(dir, endFile), in.End),
	)
}

// Spare removes what takes much room from a stored run: its history and the logs. Its
// configuration, verdicts and figures stay.
func Spare(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "lockerd-*.log"))
	if err != nil {
		return err
	}
	for _, name := range []string{opsFile, ednFile, eventsFile, clockFile} {
		logs = append(logs, filepath.Join(dir, name))
	}
	for _, path := range logs {
		if e := os.Remove(path); !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// ErrNoHistory says that a stored run cannot be judged.
var ErrNoHistory = errors.New("no history")

// ErrNoRun says that a directory is not that of a run.
var ErrNoRun = errors.New("not a run")

// Load reads a stored run.
func Load(dir string) (in check.Input, err error) {
	if _, err := os.Stat(filepath.Join(dir, opsFile)); errors.Is(err, os.ErrNotExist) {
		why := "it was broken off, or is going on"
		if _, err := LoadResults(dir); err == nil {
			why = "only the figures of runs that passed are kept, unless by jx soak --keep"
		}
		return in, fmt.Errorf("%w: %s", ErrNoHistory, why)
	}
	if in.Ops, err = history.ReadFile[history.Op](filepath.Join(dir, opsFile)); err != nil {
		return in, err
	}
	if in.Events, err = history.ReadFile[history.Event](filepath.Join(dir, eventsFile)); err != nil {
		return in, err
	}
	return in, readJSON(filepath.Join(dir, endFile), &in.End)
}

// LoadConfig reads the configuration of a stored run.
func LoadConfig(dir string) (c Config, err error) {
	err = readJSON(filepath.Join(dir, configFile), &c)
	if errors.Is(err, os.ErrNotExist) {
		return c, fmt.Errorf("%s is %w: there is no %s in it", dir, ErrNoRun, configFile)
	}
	return c, err
}

// SaveConfig stores the configuration of a run in its directory.
func SaveConfig(c Config) error { return writeJSON(filepath.Join(c.Store, configFile), c) }

// SaveResults stores the verdicts on a run, and its figures.
func SaveResults(dir string, results []check.Result, sum Summary) error {
	return errors.Join(writeJSON(filepath.Join(dir, resultFile), results), writeJSON(filepath.Join(dir, sumFile), sum))
}

// LoadSummary reads the figures of a run.
func LoadSummary(dir string) (s Summary, err error) {
	return s, readJSON(filepath.Join(dir, sumFile), &s)
}

// LoadResults reads the verdicts on a run.
func LoadResults(dir string) (results []check.Result, err error) {
	return results, readJSON(filepath.Join(dir, resultFile), &results)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
