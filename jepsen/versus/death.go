package versus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Death is a test in which holders are killed.
type Death struct {
	Runs int             `json:"runs"`
	TTLs []time.Duration `json:"ttls_ns"` // of leases, where there are any
}

const maxRuns = 10_000

// Validate says what is wrong with the test.
func (t Death) Validate() error {
	errs := []error{within("--runs", t.Runs, 1, maxRuns)}
	if len(t.TTLs) == 0 {
		errs = append(errs, errors.New("--ttl: at least one"))
	}
	for _, ttl := range t.TTLs {
		errs = append(errs, validTTL(ttl))
	}
	return errors.Join(errs...)
}

// victim says which processes of a holder are killed.
type victim struct {
	name string
	of   func(client, command int, family []int) []int
}

var victims = []victim{
	{"command and lock client", func(_, _ int, family []int) []int { return family }},
	{"lock client alone", func(client, _ int, _ []int) []int { return []int{client} }},
	{"command alone", func(_, command int, _ []int) []int { return []int{command} }},
}

// Spread is what came of a number of deaths, in milliseconds.
type Spread struct {
	Runs int     `json:"runs"`
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`
	Max  float64 `json:"max_ms"`
	// Beside counts the next commands that began while the one before was running.
	Beside int `json:"beside_the_dead_ones_command"`
}

// spread has quantiles by the nearest rank: no value that was not measured.
func spread(all []time.Duration) Spread {
	if len(all) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(all))
	rank := func(percent int) float64 {
		return ms(sorted[max(1, (len(sorted)*percent+99)/100)-1])
	}
	return Spread{Runs: len(all), P50: rank(50), P99: rank(99), Max: ms(sorted[len(sorted)-1])}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Run runs the test with all that is installed, one after the other.
func (t Death) Run(ctx context.Context, p Programs) (DeathReport, error) {
	r := DeathReport{Death: t, Machine: machine(p.Dir)}
	type system struct {
		lease time.Duration
		start func(dir string) *locker
	}
	systems := []system{{t.TTLs[0], func(dir string) *locker { return lockersh(p, dir) }}}
	for _, ttl := range t.TTLs {
		if !p.installed() {
			r.Systems = append(r.Systems, DeathSystem{Title: etcdTitle(ttl), Missing: notInstalled})
			continue
		}
		systems = append(systems, system{ttl, func(dir string) *locker { return etcd(p, dir, ttl) }})
	}
	var measured []DeathSystem
	for i, s := range systems {
		dir, err := p.place(fmt.Sprint("system-", i))
		if err != nil {
			return r, err
		}
		d, err := t.system(ctx, p, s.start(dir), dir, s.lease)
		if err != nil {
			return r, fmt.Errorf("%s: %w", d.Title, err)
		}
		measured = append(measured, d)
	}
	r.Systems = append(measured, r.Systems...)
	return r, nil
}

func (t Death) system(ctx context.Context, p Programs, l *locker, dir string, lease time.Duration) (DeathSystem, error) {
	d := DeathSystem{Title: l.title, About: l.about}
	defer l.stop()
	if err := l.start(ctx); err != nil {
		return d, err
	}
	for _, v := range victims {
		var all []time.Duration
		beside := 0
		for i := range t.Runs {
			x := death{Programs: p, l: l, dir: dir, from: i, lock: fmt.Sprintf("%c-%d", v.name[0], len(d.Rows)*t.Runs+i), lease: lease}
			took, still, err := x.die(ctx, v)
			if ctx.Err() != nil {
				return d, context.Cause(ctx)
			}
			if err != nil {
				return d, fmt.Errorf("%s, run %d: %w", v.name, i+1, err)
			}
			all = append(all, took)
			if still {
				beside++
			}
		}
		s := spread(all)
		s.Beside = beside
		d.Rows = append(d.Rows, s)
	}
	return d, nil
}

// death is one run.
type death struct {
	Programs
	l     *locker
	dir   string
	from  int
	lock  string
	lease time.Duration
}

// die kills a holder for whose lock another one waits. It returns the time until that
// one's command began, and whether the holder's command was running then.
func (x death) die(ctx context.Context, v victim) (took time.Duration, beside bool, err error) {
	holders, err := listen("jx-versus-holder")
	if err != nil {
		return 0, false, err
	}
	defer holders.Close()
	nexts, err := listen("jx-versus-next")
	if err != nil {
		return 0, false, err
	}
	defer nexts.Close()

	holder, err := x.l.run(x.dir, x.from, x.lock, x.Self, HoldCommand, holders.name())
	if err != nil {
		return 0, false, err
	}
	var dead []int // all that there was of the holder
	defer func() {
		dead = append(dead, family(holder.pid())[1:]...)
		if !holder.over() {
			kill(holder.pid())
		}
		kill(dead...)
		<-holder.ended
		bury(dead)
	}()
	conn, said, err := holders.accept(ctx, holder, clientTime)
	if err != nil {
		return 0, false, err
	}
	defer conn.Close()
	command, err := hear(said, "hold")
	if err != nil {
		return 0, false, err
	}

	next, err := x.l.run(x.dir, x.from+1, x.lock, x.Self, StampCommand, nexts.name(), fmt.Sprint(command))
	if err != nil {
		return 0, false, err
	}
	defer func() {
		limit := endTime
		if err != nil {
			limit = 0 // it has nothing to come to its end for
		}
		err = errors.Join(err, next.end(ctx, limit))
	}()
	if err := x.awaitWaiter(ctx); err != nil {
		return 0, false, err
	}
	// A lease is renewed every third of its time: the death is at no particular point
	// of that.
	if !pause(ctx, rand.N(x.lease/3)) {
		return 0, false, context.Cause(ctx)
	}
	all := family(holder.pid())
	dead = all[1:]
	victims := v.of(holder.pid(), command, all)
	began := monotonic()
	kill(victims...)

	after, told, err := nexts.accept(ctx, next, clientTime+2*x.lease)
	if err != nil {
		return 0, false, err
	}
	defer after.Close()
	line, err := told.ReadString('\n')
	if err != nil {
		return 0, false, fmt.Errorf("the next command ended early: %w", err)
	}
	var at int64
	if err := parseLine(line, "stamp", &at, &beside); err != nil {
		return 0, false, err
	}
	fmt.Fprintln(after, "seen")
	return time.Duration(at) - began, beside, nil
}

func (x death) awaitWaiter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clientTime)
	defer cancel()
	for {
		n, err := x.l.waiters(ctx, x.lock)
		if err == nil && n == 1 {
			return nil
		}
		if !pause(ctx, pollEvery) {
			return fmt.Errorf("wait for the next one to wait: %w: %d do: %w", context.Cause(ctx), n, err)
		}
	}
}
