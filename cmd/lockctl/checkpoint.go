package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/executor"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
)

func (p *program) checkpointCommand() *cobra.Command {
	var node string
	within := workTime{getopt.Seconds(defaultWork)}
	var s executor.CheckpointSpec
	var run, stop, kill bool
	c := &cobra.Command{
		Use:   "checkpoint --node NODE (--pid PID|--lock NAME) --file FILE",
		Short: "Write a job on a node to a file",
		Long: `checkpoint writes a process and all that descends from it to a file on a node: that of --pid,
or the one that holds the lock of --lock. It runs on afterwards, unless --stop or --kill is given.

With --suspend it is ended, and its lock is kept for it: nobody gets the lock until lockctl
restart has started the job again, there or on another node, under a new fence; or until
lockctl break gives it up. A lockersh whose command that was ends with the status 79. It is
refused if the job holds another lock too, as it would lose that one, unless it has both in
one hold (lockersh --all).

If anything is refused, or fails, the job runs on as if nothing had been asked. The node
has to run with --executors checkpoint, and it takes CRIU there. What can be saved is told in
docs/checkpoint.md: a command of lockersh has to be started with --checkpointable.`,
		Example: `  lockctl checkpoint --node n1 --pid 4711 --file /var/jobs/render.ckpt
  lockctl checkpoint --node n1 --lock render --suspend --file /shared/render.ckpt
  lockctl restart --node n2 --file /shared/render.ckpt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed
			if given("pid") == given("lock") {
				return errors.New("what? give either --pid or --lock")
			}
			switch {
			case given("pid") && s.PID <= 1:
				return fmt.Errorf("--pid %d: that is no process that could be saved", s.PID)
			case given("lock") && s.Lock == "":
				return errors.New("--lock: the name of the lock is empty")
			case run && (stop || kill || s.Suspend), stop && (kill || s.Suspend):
				return errors.New("--run, --stop and --kill exclude each other, and a job whose lock is suspended is ended")
			}
			switch {
			case stop:
				s.After = "stop"
			case kill:
				s.After = "kill"
			}
			return p.act(cmd, node, executor.ActionCheckpoint, s.File, s, &within)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&node, "node", "", "the `node` on which the job is, as lockctl members names it")
	f.IntVar(&s.PID, "pid", 0, "the `process`, with all that descends from it")
	f.StringVar(&s.Lock, "lock", "", "the process that holds the lock of this `name`")
	f.StringVar(&s.File, "file", "", "the `file` on the node, from / on; it is replaced, but with --suspend it must not be there")
	f.BoolVar(&s.Suspend, "suspend", false, "end the job and keep its lock for it")
	f.BoolVar(&run, "run", false, "let the job run on (default)")
	f.BoolVar(&stop, "stop", false, "leave it stopped")
	f.BoolVar(&kill, "kill", false, "end it")
	f.BoolVar(&s.Zstd, "zstd", false, "compress the file")
	f.Var(&within, "timeout", "break it off if it takes longer: the job runs on, and there is no file")
	return c
}

func (p *program) restartCommand() *cobra.Command {
	var node string
	within := workTime{getopt.Seconds(defaultWork)}
	var s executor.RestartSpec
	var relocations []string
	c := &cobra.Command{
		Use:   "restart --node NODE --file FILE",
		Short: "Start a job on a node again that was written to a file",
		Long: `restart starts a job again from a file on a node. If its lock was suspended, the job gets it
back, with a new fence, before any of it runs. That is refused if the lock is not kept for
it any more: if the job lives already, as it has been restarted before, or if somebody has
broken the lock; and while it is not known to have ended, as its node was killed before it
could say so. The lock ends with the job's eldest process. If the restart fails before the
job is let run, the lock is kept for the file as before.

What was saved without --suspend is restarted by cr_restart on its host, unless it had no
lock.

The job goes on in the background, as a child of a process that belongs to nobody. The
node has to run with --executors checkpoint, and it takes CRIU there.`,
		Example: `  lockctl restart --node n2 --file /shared/render.ckpt
  lockctl restart --node n2 --file /shared/render.ckpt --relocate /srv/a=/srv/b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("lock") && s.Lock == "" {
				return errors.New("--lock: the name of the lock is empty")
			}
			if len(relocations) > checkpoint.MaxRelocations {
				return fmt.Errorf("--relocate: there are %d, and at most %d are possible", len(relocations), checkpoint.MaxRelocations)
			}
			for _, text := range relocations {
				r, err := checkpoint.ParseRelocation(text)
				if err != nil {
					return fmt.Errorf("--relocate: %w", err)
				}
				s.Relocations = append(s.Relocations, r)
			}
			return p.act(cmd, node, executor.ActionRestart, s.File, s, &within)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&node, "node", "", "the `node` to restart on, as lockctl members names it")
	f.StringVar(&s.File, "file", "", "the `file` on that node, from / on")
	f.StringVar(&s.Lock, "lock", "", "only if the job's lock has this `name`")
	f.BoolVar(&s.NewPIDs, "no-restore-pid", false, "give the processes other numbers, outside of a pid namespace of their own")
	f.BoolVar(&s.Trust, "trust", false, "restart a file that another user than root could have written: whoever wrote it decides what is run")
	f.Var(&within, "timeout", "break it off if it takes longer: the job has not run, and its lock is kept for the file")
	f.StringArrayVar(&relocations, "relocate", nil, "look for files below one path below another: `OLD=NEW`; may be repeated")
	return c
}

// lateWhy begins the reason of an order that has taken too long.
const lateWhy = "not done within "

// act has one node do something, which is over then.
func (p *program) act(cmd *cobra.Command, node, action, file string, spec any, within *workTime) error {
	switch {
	case node == "":
		return errors.New("where? give --node")
	case file == "":
		return errors.New("which file? give --file")
	case !filepath.IsAbs(file) || filepath.Clean(file) != file:
		return fmt.Errorf("--file %s: it is a file on the node: write its whole name from / on", plain(file))
	}
	if err := p.byAdmin(cmd); err != nil {
		return err
	}
	ctx := context.WithoutCancel(cmd.Context())
	signals := job.Notify()
	defer job.Release(signals)
	w := &waiting{signals: signals}
	s, err := p.openOrder(ctx, orderRequest{
		Action: action, Spec: spec, Nodes: []string{node}, Timeout: -1, Within: within.milliseconds(), Attached: true,
	}, w)
	if err != nil {
		return err
	}
	defer s.close()
	o, err := p.awaitFrozen(s, w)
	if err != nil {
		if strings.HasPrefix(o.Why, lateWhy) {
			err = fmt.Errorf("%w; --timeout gives it more (lockctl locks says what has become of its lock)", err)
		}
		return err
	}
	// It is done; how the order is put away is of no interest.
	end, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if _, err := p.ask(end, http.MethodPost, "/v1/orders/thaw", nil, thawRequest{ID: o.ID}); err != nil && !errors.Is(err, errRefused) {
		fmt.Fprintf(p.errs, "lockctl: order %d is done, and stays in the list until this node forgets it: %v\n", o.ID, err)
	}
	if p.json {
		return p.printJSON(o)
	}
	for _, n := range o.Nodes {
		if _, err := fmt.Fprintf(p.out, "%s: %s\n", plain(n.Node), plain(n.Text)); err != nil {
			return err
		}
	}
	return nil
}
