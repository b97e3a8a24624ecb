package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/freezer"
)

// freezing is what freeze and fsfreeze have in common.
type freezing struct {
	nodes   []string
	all     bool
	timeout freezeTime
	lock    string
	verbose bool
	dryRun  bool
}

func (f *freezing) flags(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.nodes, "node", nil, "the `nodes` to freeze on, as lockctl members names them")
	c.Flags().BoolVar(&f.all, "all-nodes", false, "on every node")
	c.Flags().Var(&f.timeout, "timeout", "thaw after so long, whatever happens; at most 31536000 (365 days); 0 is 60, less than 0 never")
	c.Flags().StringVar(&f.lock, "lock", "", "take the lock of this `name` first, and hold it for as long as the freeze lasts")
	c.Flags().BoolVar(&f.verbose, "verbose", false, "tell afterwards what was frozen and how long that took")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be frozen on each node, and freeze nothing")
	c.Flags().SortFlags = false
}

// request is the order, without what it stands under.
func (f *freezing) request(action string, spec any, attached bool) (orderRequest, error) {
	switch {
	case f.all == (len(f.nodes) > 0):
		return orderRequest{}, errors.New("where? give either --node or --all-nodes")
	case slices.Contains(f.nodes, ""):
		return orderRequest{}, errors.New("--node: the name of a node is empty")
	}
	return orderRequest{Action: action, Spec: spec, Nodes: f.nodes, All: f.all, Timeout: f.timeout.milliseconds(), Attached: attached}, nil
}

// words are the arguments before and after the dashes.
func words(cmd *cobra.Command, args []string) (before, command []string, err error) {
	n := cmd.ArgsLenAtDash()
	if n < 0 {
		return args, nil, nil
	}
	if before, command = args[:n], args[n:]; len(command) == 0 || command[0] == "" {
		return nil, nil, errors.New("no command after --")
	}
	return before, command, nil
}

const freezeAbout = `
With a command it lasts until the command has ended, and the exit status is the command's;
if lockctl is killed, it ends with it. Without one the number of the order is printed as soon as
all is frozen, which then lasts until it is thawed or the time is up.

It is done on all the nodes or on none. If one of them is lost, or loses touch with the
others, all thaw: then the command is ended, and the exit status is 76. So it is when
the time is up. Who may order it is checked by the admin socket: root, and the user that
lockerd runs as. The nodes have to run with --executors.`

func (p *program) freezeCommand() *cobra.Command {
	var f freezing
	var pids, trees, sessions []int
	var cgroups []string
	var machine, partial bool
	c := &cobra.Command{
		Use:   "freeze --node NODE[,NODE...]|--all-nodes TARGET... [-- COMMAND...]",
		Short: "Let processes on nodes stand still",
		Long: `freeze lets processes stand still on nodes of the cluster. The targets are the same on each
of the nodes.
` + freezeAbout,
		Example: `  lockctl freeze --node n3 --tree 4711 -- ssh n3 gcore 4711
  lockctl freeze --node n1,n2 --cgroup /sys/fs/cgroup/batch --timeout 300
  lockctl freeze --all-nodes --cgroup /sys/fs/cgroup/batch --lock maintenance -- ./rotate-keys`,
		RunE: func(cmd *cobra.Command, args []string) error {
			before, command, err := words(cmd, args)
			if err != nil {
				return err
			}
			if len(before) > 0 {
				return fmt.Errorf("%q: a command stands behind --", before[0])
			}
			spec := processSpec{Partial: partial}
			if machine {
				spec.Targets = append(spec.Targets, freezer.Machine())
			}
			if len(pids) > 0 {
				spec.Targets = append(spec.Targets, freezer.Processes(pids...))
			}
			for _, pid := range trees {
				spec.Targets = append(spec.Targets, freezer.Tree(pid))
			}
			for _, sid := range sessions {
				spec.Targets = append(spec.Targets, freezer.Session(sid))
			}
			for _, dir := range cgroups {
				if dir == "" {
					return errors.New("--cgroup: the name of the directory is empty")
				}
				if !filepath.IsAbs(dir) {
					return fmt.Errorf("--cgroup %s: it is a directory on the nodes: write it from / on", dir)
				}
				spec.Targets = append(spec.Targets, freezer.Cgroup(dir))
			}
			if len(spec.Targets) == 0 {
				return errors.New("what? give --pid, --tree, --session, --cgroup or --machine")
			}
			if err := (&freezer.Order{Targets: spec.Targets}).Validate(); err != nil {
				return err
			}
			return p.carryOut(cmd, &f, "freeze", spec, command)
		},
	}
	f.flags(c)
	c.Flags().IntSliceVar(&pids, "pid", nil, "target: the `processes`")
	c.Flags().IntSliceVar(&trees, "tree", nil, "target: the `process` and all its descendants")
	c.Flags().IntSliceVar(&sessions, "session", nil, "target: all processes of the `session`")
	c.Flags().StringArrayVar(&cgroups, "cgroup", nil, "target: the cgroup (version 2) of this `directory`, which nothing in it notices")
	c.Flags().BoolVar(&machine, "machine", false, "target: all user processes but the node, lockctl, and whom these descend from")
	c.Flags().BoolVar(&partial, "partial", false, "go on though something does not stop")
	return c
}

func (p *program) fsfreezeCommand() *cobra.Command {
	var f freezing
	c := &cobra.Command{
		Use:   "fsfreeze --node NODE[,NODE...]|--all-nodes MOUNT... [-- COMMAND...]",
		Short: "Freeze file systems on nodes, so that their devices can be copied",
		Long: `fsfreeze freezes the file systems that are mounted at the directories MOUNT, the same on each
of the nodes: what was written is on the devices, and does not change until the thaw.
Whoever writes waits for that; reading goes on. All of them stand still at one moment: copies
of the devices that are made meanwhile belong together.
` + freezeAbout,
		Example: `  lockctl fsfreeze --node db1,db2,db3 /data -- ssh array snapshot vol7
  lockctl fsfreeze --node db1,db2,db3 --lock db-writes /data /data/log -- ./copy-all
  id=$(lockctl fsfreeze --node db1 --timeout 30 /data); ssh array snapshot vol7; lockctl fsthaw $id`,
		RunE: func(cmd *cobra.Command, args []string) error {
			mounts, command, err := words(cmd, args)
			if err != nil {
				return err
			}
			if len(mounts) == 0 {
				return errors.New("what? name the directories where the file systems are mounted")
			}
			for _, m := range mounts {
				if m == "" {
					return errors.New("a directory where a file system is mounted: its name is empty")
				}
				if !filepath.IsAbs(m) {
					return fmt.Errorf("%s: it is a directory on the nodes: write it from / on (a command stands behind --)", m)
				}
			}
			return p.carryOut(cmd, &f, "fsfreeze", mountSpec{mounts}, command)
		},
	}
	f.flags(c)
	return c
}

// processSpec and mountSpec are read by the nodes' executors.
type processSpec struct {
	Targets []freezer.Target `json:"targets"`
	Partial bool             `json:"partial,omitempty"`
}

type mountSpec struct {
	Mounts []string `json:"mounts"`
}

// carryOut freezes, for as long as a command runs if there is one.
func (p *program) carryOut(cmd *cobra.Command, f *freezing, action string, spec any, command []string) error {
	req, err := f.request(action, spec, len(command) > 0)
	switch {
	case err != nil:
		return err
	case cmd.Flags().Changed("lock") && f.lock == "":
		return errors.New("--lock: the name of the lock is empty")
	case strings.Contains(f.lock, ":"):
		// lockersh takes any one of such a list. A freeze keeps others out by one lock.
		return fmt.Errorf("--lock %s: wants the name of one lock: a colon stands between several", plain(f.lock))
	}
	if f.dryRun {
		switch {
		case len(command) > 0:
			return errors.New("--dry-run runs no command")
		case f.lock != "":
			return errors.New("--dry-run takes no lock")
		}
	}
	if err := p.byAdmin(cmd); err != nil {
		return err
	}
	if f.dryRun {
		return p.rehearse(cmd.Context(), req)
	}
	if len(command) > 0 {
		if p.json {
			return errors.New("--json is for freezes without a command: otherwise all output is the command's")
		}
		return p.freezeFor(cmd.Context(), f, req, command)
	}
	return p.freezeAndLeave(cmd.Context(), f, req)
}

// byAdmin goes by the admin socket, unless the command line names a node's port.
func (p *program) byAdmin(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	switch {
	case given("addr") && given("admin"):
		return errors.New("--addr and --admin exclude each other")
	case given("addr"):
		return nil
	case p.admin == "":
		return errors.New("no admin socket is known here ($XDG_RUNTIME_DIR is not set): give the one of lockerd with --admin")
	}
	p.socket = p.admin
	return nil
}
