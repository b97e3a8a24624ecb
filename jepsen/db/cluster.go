package db

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/disk"
	"github.com/lockerd/lockerd/jepsen/netns"
	"github.com/lockerd/lockerd/jepsen/proc"
)

// PidstatPort is the UDP port of a pidstatd.
const PidstatPort = "1752"

// Ports of a node, the defaults of lockerd.
const (
	clientPort = "1751"
	peerPort   = "1753"
	gossipPort = "1754"
	httpPort   = "1755"
)

// Options say what cluster to run.
type Options struct {
	Binary string
	Nodes  int
	Disks  string // directory of a tmpfs, for images and mount points
	Logs   string // directory for what the nodes print

	// Pidstatd is the program for a host without a node; empty for none.
	Pidstatd string

	// Volumes gives each node a file system to be frozen, and executors.
	Volumes bool
}

// Cluster is a number of nodes.
type Cluster struct {
	Nodes []*Node
	Far   *Far // nil unless there is a host without a node
	net   *netns.Network
	data  string
}

// Far is a host that runs no node, but a pidstatd, as hosts of old clients do.
type Far struct {
	*proc.Proc
	Host *netns.Host
}

// Start runs the pidstatd on its host.
func (f *Far) Start() error { return f.Proc.Start(f.Host.Within) }

func newFar(w *netns.Network, o Options) (*Far, error) {
	h, err := w.Far()
	if err != nil {
		return nil, err
	}
	f := &Far{
		Proc: &proc.Proc{
			Name: "pidstatd", Path: o.Pidstatd, Args: []string{"--nofork", "--host", h.IP, "--port", PidstatPort},
			// Such lines as no server may write are looked for there, too.
			Log: filepath.Join(o.Logs, "lockerd-pidstatd.log"),
		},
		Host: h,
	}
	return f, f.Start()
}

// Node is one lockerd with its host and its disk.
type Node struct {
	*proc.Proc
	Host *netns.Host
	Disk *disk.Disk
	http string // the base of its HTTP port

	Volume *disk.Disk // to be frozen; nil for none
	admin  string

	clock string // the file that its clock is set by
}

// Client is the address of the node's client port.
func (n *Node) Client() string { return net.JoinHostPort(n.Host.IP, clientPort) }

// Peer is the address of the node's peer port, by which the others know it.
func (n *Node) Peer() string { return net.JoinHostPort(n.Host.IP, peerPort) }

// SetClock sets the node's clock, if it was built with one that can be set: the
// rate of the monotonic clock, and the offset of the wall clock.
func (n *Node) SetClock(rate float64, offset time.Duration) error {
	// Whole at once: the node may read it at any moment.
	next := n.clock + ".next"
	if err := os.WriteFile(next, []byte(fmt.Sprintf("%g %v\n", rate, offset)), 0o600); err != nil {
		return fmt.Errorf("set the clock of %s: %w", n.Name, err)
	}
	return os.Rename(next, n.clock)
}

// Clock is what a node's clocks show, beside those of the machine at that moment.
type Clock struct {
	Machine, Own   time.Duration // the monotonic clocks
	MachineW, OwnW time.Duration // the wall clocks, since 1970
}

// Offset is how far a node's wall clock is ahead.
func (c Clock) Offset() time.Duration { return c.OwnW - c.MachineW }

// Rate is how fast the node's monotonic clock ran between an earlier look and this one.
func (c Clock) Rate(since Clock) float64 {
	return float64(c.Own-since.Own) / float64(c.Machine-since.Machine)
}

// Clock looks at the node's clock as the node sees it. It is an error if it was not built
// with one that can be set.
func (n *Node) Clock() (c Clock, err error) {
	b, err := os.ReadFile(n.clock + ".is")
	if err == nil {
		_, err = fmt.Sscan(string(b), &c.Machine, &c.Own, &c.MachineW, &c.OwnW)
	}
	if err != nil {
		return c, fmt.Errorf("read the clock of %s: %w", n.Name, err)
	}
	return c, nil
}

// Start runs the node on its host.
func (n *Node) Start() error { return n.Proc.Start(n.Host.Within) }

// New makes hosts, disks and nodes, and starts the nodes.
func New(o Options) (*Cluster, error) {
	w, err := netns.New(o.Nodes)
	if err != nil {
		return nil, err
	}
	c := &Cluster{net: w, data: o.data()}
	var join []string
	for _, h := range w.Hosts() {
		join = append(join, net.JoinHostPort(h.IP, gossipPort))
	}
	for i, h := range w.Hosts() {
		name := fmt.Sprintf("n%d", i+1)
		d, err := disk.New(o.Disks, name)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		admin := filepath.Join(o.Disks, name+".admin")
		args := []string{
			"--name", name, "--data-dir", filepath.Join(d.Dir, "data"), "--host", h.IP, "--port", clientPort,
			"--peer", net.JoinHostPort(h.IP, peerPort), "--gossip", net.JoinHostPort(h.IP, gossipPort),
			"--http", net.JoinHostPort(h.IP, httpPort), "--advertise", h.IP, "--insecure",
			"--admin", admin,
		}
		if o.Nodes > 1 {
			args = append(args, "--bootstrap-expect", fmt.Sprint(o.Nodes), "--join", strings.Join(join, ","))
		}
		clock := filepath.Join(o.Disks, name+".clock")
		n := &Node{
			clock: clock, admin: admin,
			Proc: &proc.Proc{Name: name, Path: o.Binary, Args: args, Env: []string{"JX_CLOCK=" + clock}, Log: filepath.Join(o.Logs, "lockerd-"+name+".log")},
			Host: h, Disk: d, http: "http://" + net.JoinHostPort(h.IP, httpPort),
		}
		c.Nodes = append(c.Nodes, n)
		if o.Volumes {
			if err := n.addVolume(o); err != nil {
				return nil, errors.Join(err, c.Close())
			}
		}
		if err := n.Start(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if o.Pidstatd != "" {
		if c.Far, err = newFar(w, o); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Close kills the nodes and unmounts their disks.
func (c *Cluster) Close() error {
	var errs []error
	if c.Far != nil {
		c.Far.Kill()
	}
	for _, n := range c.Nodes {
		_ = n.Disk.Thaw() // a process that waits for its disk cannot end
		n.Kill()
		errs = append(errs, n.Disk.Close())
		if n.Volume != nil {
			errs = append(errs, n.Volume.Close())
		}
	}
	return errors.Join(append(errs, c.net.Close())...)
}

// Node finds a node by its name, nil if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Leader is the node that leads with the highest term, as the nodes that answer
// say of themselves; nil if none does.
func (c *Cluster) Leader(ctx context.Context) (*Node, uint64) {
	type answer struct {
		n *Node
		s Status
	}
	answers := make(chan answer, len(c.Nodes))
	for _, n := range c.Nodes {
		go func() {
			s, err := n.Status(ctx, false)
			if err != nil {
				s = Status{}
			}
			answers <- answer{n, s}
		}()
	}
	var lead *Node
	var term uint64
	for range c.Nodes {
		if a := <-answers; a.s.Role == "leader" && a.s.Term > term {
			lead, term = a.n, a.s.Term
		}
	}
	return lead, term
}

// AwaitReady waits until every node can serve.
func (c *Cluster) AwaitReady(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pollEvery is the time between two looks at a condition.
const pollEvery = 20 * time.Millisecond

// AwaitReady waits until the node has read the newest table.
func (n *Node) AwaitReady(ctx context.Context) error {
	return await(ctx, n.Name+" to be ready", func() error {
		if !n.Running() {
			return fmt.Errorf("%s has ended: %s", n.Name, n.Exit())
		}
		return n.Ready(ctx)
	})
}

func await(ctx context.Context, what string, check func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}
