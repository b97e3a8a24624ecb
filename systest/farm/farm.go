package farm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options say what cluster to run. The zero value is one server.
type Options struct {
	Binary  string // of lockerd; empty means the one beside the running program
	Servers int    // 0 means 1
	Agents  int
	// Hosts gives each node a network namespace. The program itself must be in one
	// that it has made and that is empty yet.
	Hosts bool
	// Named gives each node a host's name of its own, so that a process that is
	// said to be of one is watched by that one alone, although all share a kernel.
	// It takes root: see [CanName]. Hosts implies it.
	Named bool
	Args  []string // further arguments of every node
	// Files bounds the open files of each node. 0 means our own bound.
	Files uint64
	// Run is a directory in memory for what nodes with executors freeze, each in one of
	// its own there. Empty is that of the host, which all would share.
	Run string
	// Wrap, if not nil, is a command that executes what is appended to it: the node of
	// that name.
	Wrap func(name string) []string
}

const (
	maxNodes = 9
	startup  = time.Minute           // for a cluster to become ready
	poll     = 10 * time.Millisecond // between two looks at a condition
)

// Farm is a running cluster. Its methods are for one goroutine at a time.
type Farm struct {
	Nodes []*Node // the servers n1, n2 ..., then the agents a1, a2 ...

	dir string
	net *bridge // nil without Options.Hosts
}

// New starts a cluster and waits until every node is ready to serve.
func New(ctx context.Context, o Options) (*Farm, error) {
	if o.Servers == 0 {
		o.Servers = 1
	}
	if o.Servers < 0 || o.Agents < 0 || o.Servers+o.Agents > maxNodes {
		return nil, fmt.Errorf("a farm has 1 to %d nodes", maxNodes)
	}
	binary, err := findBinary(o.Binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "lockerd-farm-")
	if err != nil {
		return nil, fmt.Errorf("make a place for the servers' data: %w", err)
	}
	f := &Farm{dir: dir}
	if err := f.build(o, binary); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.start(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func findBinary(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find lockerd: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "lockerd")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find lockerd: %w", err)
	}
	if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is no program: say with --lockerd where lockerd is", path)
	}
	return path, nil
}

// build makes the nodes, without starting them.
func (f *Farm) build(o Options, binary string) error {
	all := o.Servers + o.Agents
	var addrs []Address
	var err error
	if o.Hosts {
		if f.net, err = newBridge(all); err != nil {
			return err
		}
		addrs = f.net.addresses()
	} else if addrs, err = Loopback(all); err != nil {
		return err
	}
	var join []string
	for _, a := range addrs[:o.Servers] {
		join = append(join, a.Gossip())
	}
	for i, a := range addrs {
		n := &Node{Address: a, command: []string{binary}, files: o.Files}
		kind := []string{"--bootstrap-expect", fmt.Sprint(o.Servers), "--peer", a.Peer()}
		if i < o.Servers {
			n.Name = fmt.Sprintf("n%d", i+1)
		} else {
			n.Name = fmt.Sprintf("a%d", i+1-o.Servers)
			kind = []string{"--agent"}
		}
		n.dir = filepath.Join(f.dir, n.Name)
		n.log = n.dir + ".log"
		n.args = append([]string{
			"--name", n.Name, "--data-dir", n.dir, "--host", a.Host, "--port", fmt.Sprint(a.Port),
			"--gossip", a.Gossip(), "--http", a.HTTP(), "--admin", n.Admin(),
		}, kind...)
		if all > 1 {
			n.args = append(n.args, "--join", strings.Join(join, ","))
		}
		if o.Hosts {
			n.host = f.net.hosts[i]
			n.args = append(n.args, "--advertise", a.Host, "--insecure")
		}
		if o.Wrap != nil {
			n.command = append(o.Wrap(n.Name), binary)
		}
		if o.Run != "" {
			n.env = []string{"FREEZER_RUN=" + filepath.Join(o.Run, n.Name)}
		}
		n.named = o.Hosts || o.Named
		n.args = append(n.args, o.Args...)
		f.Nodes = append(f.Nodes, n)
	}
	return nil
}

func (f *Farm) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startup, fmt.Errorf("not ready within %v", startup))
	defer cancel()
	for _, n := range f.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	// Those that have ended already have something to say.
	return f.awaitReady(ctx, f.Nodes)
}

// Close kills all nodes and removes their data and networks.
func (f *Farm) Close() error {
	for _, n := range f.Nodes {
		n.Kill()
	}
	var err error
	if f.net != nil {
		err = f.net.close()
	}
	return errors.Join(err, os.RemoveAll(f.dir))
}

// Running lists the nodes whose processes run.
func (f *Farm) Running() []*Node {
	return slices.DeleteFunc(slices.Clone(f.Nodes), func(n *Node) bool { return !n.Running() })
}

// AwaitReady waits until every running node has read the newest table, by way of
// the one leader that they all know.
func (f *Farm) AwaitReady(ctx context.Context) error { return f.awaitReady(ctx, f.Running()) }

func (f *Farm) awaitReady(ctx context.Context, nodes []*Node) error {
	for _, n := range nodes {
		if err := n.AwaitReady(ctx); err != nil {
			return err
		}
	}
	_, err := f.AwaitLeader(ctx)
	return err
}

// AwaitLeader waits until all running nodes agree on a running leader.
func (f *Farm) AwaitLeader(ctx context.Context) (*Node, error) {
	var lead *Node
	err := Await(ctx, "a leader that all nodes know", func() error {
		lead = nil
		for _, n := range f.Running() {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			l := f.named(s.Leader)
			if l == nil || !l.Running() || lead != nil && lead != l {
				return fmt.Errorf("%s says that the leader is %q", n.Name, s.Leader)
			}
			lead = l
		}
		if lead == nil {
			return errors.New("no node runs")
		}
		return nil
	})
	return lead, err
}

func (f *Farm) named(name string) *Node {
	for _, n := range f.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Followers lists the running servers and agents other than the given leader.
func (f *Farm) Followers(lead *Node) []*Node {
	return slices.DeleteFunc(f.Running(), func(n *Node) bool { return n == lead })
}

// Await calls check until it returns nil. When ctx ends first, the error says
// what was waited for and what check said last.
func Await(ctx context.Context, what string, check func() error) error {
	tick := time.NewTicker(poll)
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
