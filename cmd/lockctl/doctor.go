package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// What a host may be wanted to do.
const (
	forProcesses   = "freeze"
	forFileSystems = "fsfreeze"
	forCheckpoints = "checkpoint"
	forOrders      = "orders"
)

var purposes = []string{forProcesses, forFileSystems, forCheckpoints, forOrders}

// States of a check.
const (
	checkFine    = "ok"
	checkLimited = "limited" // it works, but not for everything
	checkMissing = "missing"
)

// check is one thing that something needs.
type check struct {
	Name  string   `json:"check"`
	For   []string `json:"for"`
	State string   `json:"state"`
	Found string   `json:"found,omitempty"`
	Do    string   `json:"do,omitempty"` // what to do, if it is not fine
}

// checker looks for something.
type checker struct {
	name string
	of   []string
	look func(context.Context, *check)
}

func (c *check) fine(format string, args ...any) {
	c.State, c.Found = checkFine, fmt.Sprintf(format, args...)
}

func (c *check) missing(do, format string, args ...any) {
	c.State, c.Found, c.Do = checkMissing, fmt.Sprintf(format, args...), do
}

func (c *check) limited(do, format string, args ...any) {
	c.missing(do, format, args...)
	c.State = checkLimited
}

func (p *program) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [PURPOSE]...",
		Short: "Say what this host lacks for freezes, checkpoints and orders",
		Long: `doctor looks for what this host needs, and says what to do about what is missing. Nothing
is changed; to see whether checkpoints work, a process of its own that listens at a port is
checkpointed and restarted.

PURPOSE is freeze, fsfreeze, checkpoint or orders; all of them if none is given.

Exit status: 0 if nothing is missing, 1 if something is, 64 for a wrong option or purpose.
What is limited is not missing.`,
		Example: `  lockctl doctor
  lockctl doctor checkpoint
  lockctl doctor --json | jq -r '.checks[] | select(.state == "missing") | .do'`,
		ValidArgs: purposes,
		Args:      cobra.OnlyValidArgs,
		RunE:      func(cmd *cobra.Command, args []string) error { return p.doctor(cmd.Context(), args) },
	}
}

func (p *program) doctor(ctx context.Context, wanted []string) error {
	if len(wanted) == 0 {
		wanted = purposes
	}
	var all struct {
		Checks []check `json:"checks"`
	}
	missing := 0
	for _, c := range p.checkers() {
		if !slices.ContainsFunc(c.of, func(s string) bool { return slices.Contains(wanted, s) }) {
			continue
		}
		result := check{Name: c.name, For: c.of}
		c.look(ctx, &result)
		if result.State == checkMissing {
			missing++
		}
		all.Checks = append(all.Checks, result)
	}
	if p.json {
		e := json.NewEncoder(p.out)
		e.SetIndent("", "  ")
		if err := e.Encode(all); err != nil {
			return err
		}
	} else {
		w := p.columns()
		fmt.Fprintln(w, "CHECK\tFOR\tSTATE\tFOUND")
		for _, c := range all.Checks {
			text := plain(c.Found)
			if c.Do != "" {
				text += ": " + plain(c.Do)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Name, strings.Join(c.For, ","), c.State, text)
		}
		w.Flush()
	}
	if p.out.Err == nil && missing > 0 {
		return exitStatus(exitRefused)
	}
	return nil
}

// checkers are the checks in the order in which they are shown.
func (p *program) checkers() []checker {
	var criu *checkpoint.CRIU
	return []checker{
		{"root", []string{forProcesses, forFileSystems, forCheckpoints}, checkRoot},
		{"proc", []string{forProcesses, forFileSystems, forCheckpoints}, checkProc},
		{"pidfd", []string{forProcesses, forCheckpoints}, checkPIDFD},
		{"cgroups", []string{forProcesses}, checkCgroups},
		{"file systems", []string{forFileSystems}, checkFileSystems},
		{"capability", []string{forCheckpoints}, checkCapability},
		{"session", []string{forCheckpoints}, checkSession},
		{"criu", []string{forCheckpoints}, func(ctx context.Context, c *check) { criu = checkCRIU(ctx, c) }},
		{"preflight", []string{forCheckpoints}, func(ctx context.Context, c *check) { checkPreflight(ctx, c, criu) }},
		{"lockerd", []string{forOrders}, p.checkNode},
		{"admin", []string{forOrders}, p.checkAdmin},
	}
}

func checkRoot(_ context.Context, c *check) {
	if uid := os.Geteuid(); uid != 0 {
		c.missing("run lockerd with --executors, and cr_checkpoint, as root", "we are user %d", uid)
		return
	}
	c.fine("we are root")
}

func checkProc(_ context.Context, c *check) {
	if self, err := os.Readlink("/proc/self"); err != nil || self != fmt.Sprint(os.Getpid()) {
		c.missing("mount -t proc proc /proc", "/proc does not show our pid namespace")
		return
	}
	c.fine("/proc shows our pid namespace")
}

func checkPIDFD(_ context.Context, c *check) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		err = unix.PidfdSendSignal(fd, 0, nil, 0)
		_ = unix.Close(fd)
	}
	if err != nil {
		c.missing("use a kernel since 5.3, and let containers call pidfd_open", "no pidfds (%v)", err)
		return
	}
	c.fine("the kernel has them")
}

func checkCgroups(_ context.Context, c *check) {
	mounts, err := mountTable()
	if err != nil {
		c.missing("mount -t proc proc /proc", "%v", err)
		return
	}
	i := slices.IndexFunc(mounts, func(m mountEntry) bool { return m.kind == "cgroup2" })
	if i < 0 {
		c.limited("mount -t cgroup2 none /sys/fs/cgroup; processes can be frozen without", "no cgroups of version 2 are mounted")
		return
	}
	at := mounts[i].point
	// The root of all has no such file.
	found, _ := filepath.Glob(filepath.Join(at, "cgroup.freeze"))
	if len(found) == 0 {
		found, _ = filepath.Glob(filepath.Join(at, "*", "cgroup.freeze"))
	}
	if len(found) == 0 {
		c.limited("make a cgroup below it, with a kernel since 5.2; processes can be frozen without", "%s has no cgroup that can be frozen", at)
		return
	}
	c.fine("%s", at)
}

// freezable are types of file systems that FIFREEZE (ioctl_fs(2)) takes.
var freezable = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "gfs2", "ocfs2", "bcachefs"}

func checkFileSystems(_ context.Context, c *check) {
	mounts, err := mountTable()
	if err != nil {
		c.missing("mount -t proc proc /proc", "%v", err)
		return
	}
	var found []string
	for _, m := range mounts {
		if slices.Contains(freezable, m.kind) {
			found = append(found, m.point+" ("+m.kind+")")
		}
	}
	if len(found) == 0 {
		c.missing("put the data on ext4, xfs or btrfs", "no file system that can be frozen is mounted")
		return
	}
	const most = 5
	more := ""
	if len(found) > most {
		more = fmt.Sprintf(" and %d more", len(found)-most)
		found = found[:most]
	}
	c.fine("%s%s", strings.Join(found, ", "), more)
}

func checkCapability(_ context.Context, c *check) {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		c.missing("run it as root", "capget: %v", err)
		return
	}
	has := func(bit int) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }
	switch {
	case !has(unix.CAP_SYS_ADMIN) || !has(unix.CAP_SYS_PTRACE):
		c.missing("run it as root, in a container with that capability", "no CAP_SYS_ADMIN or no CAP_SYS_PTRACE")
	case !has(unix.CAP_SYS_RESOURCE):
		c.limited("give the container CAP_SYS_RESOURCE", "processes of other users than root cannot be checkpointed")
	default:
		c.fine("processes of all users")
	}
}

func checkSession(_ context.Context, c *check) {
	if sid, err := unix.Getsid(0); err != nil || sid == 0 {
		c.limited("start jobs with setsid", "our session began outside of our pid namespace, and what is of it cannot be checkpointed")
		return
	}
	c.fine("our session is of our pid namespace")
}

func checkCRIU(ctx context.Context, c *check) *checkpoint.CRIU {
	criu, err := checkpoint.Find(ctx)
	if err != nil {
		c.missing("run scripts/install-criu, or name one of 4.2 or later in "+checkpoint.CRIUVariable, "%v", err)
		return nil
	}
	c.fine("%s is %s", criu.Path, criu.Version)
	return criu
}

func checkPreflight(ctx context.Context, c *check, criu *checkpoint.CRIU) {
	if criu == nil {
		c.missing("get a CRIU first", "not tried")
		return
	}
	err := criu.Preflight(ctx)
	switch {
	case errors.Is(err, checkpoint.ErrNoRight):
		c.missing("run lockctl doctor as root", "not tried")
	case err != nil:
		c.missing("see `criu check` for what the kernel lacks", "%v", err)
	default:
		c.fine("a process that listens was checkpointed and restarted")
	}
}

func (p *program) checkNode(ctx context.Context, c *check) {
	b, err := p.get(ctx, "/v1/status", nil)
	var s status
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	switch {
	case err != nil:
		c.missing("start lockerd", "%v", err)
	case !s.Ready:
		c.missing("see lockctl status", "%s is not ready (%s)", s.Name, s.Reason)
	default:
		c.fine("%s (%s) at %s", s.Name, s.Role, p.where())
	}
}

// checkAdmin looks at the node of this host, by which freezes are ordered, and at what it
// lets others order.
func (p *program) checkAdmin(ctx context.Context, c *check) {
	admin := *p
	admin.socket = p.admin
	b, err := admin.get(ctx, "/v1/status", nil)
	var s status
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	switch {
	case err != nil:
		c.missing("start lockerd here", "%v", err)
	case !s.Executors:
		c.limited("start it with --executors procs,fs", "%s takes orders for other hosts, but executors are off on it", s.Name)
	default:
		c.fine("%s, with executors on", s.Name)
	}
}

type mountEntry struct{ point, kind string }

// mountTable is proc_pid_mountinfo(5).
func mountTable() (all []mountEntry, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	escapes := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		at, kind := strings.Fields(before), strings.Fields(after)
		if ok && len(at) > 4 && len(kind) > 0 {
			all = append(all, mountEntry{escapes.Replace(at[4]), kind[0]})
		}
	}
	return all, nil
}
