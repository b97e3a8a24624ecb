package db

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lockerd/lockerd/jepsen/disk"
)

// Data is the directory where each node finds its own volume mounted.
func (o Options) data() string { return filepath.Join(o.Disks, "data") }

// Data is where each node sees its volume, if it has one: the same for all.
func (c *Cluster) Data() string { return c.data }

// Admin is the node's admin socket.
func (n *Node) Admin() string { return n.admin }

// addVolume gives a node a file system to freeze, besides the one that it keeps its data
// on, and executors. The node sees the volume where all others see theirs: it has mounts
// of its own, to which what is mounted and unmounted in the sandbox is passed on.
func (n *Node) addVolume(o Options) error {
	v, err := disk.New(o.Disks, n.Name+"v")
	if err != nil {
		return err
	}
	n.Volume = v
	if err := os.MkdirAll(o.data(), 0o700); err != nil {
		return fmt.Errorf("make a volume: %w", err)
	}
	args := append([]string{
		"--mount", "--propagation", "slave", "sh", "-ec", `mount --bind "$0" "$1"; shift; exec "$@"`, v.Dir, o.data(), n.Path,
	}, n.Args...)
	n.Path, n.Args = "unshare", append(args, "--executors", "procs,fs")
	n.Env = append(n.Env, "FREEZER_RUN="+filepath.Join(o.Disks, n.Name+".run"))
	return nil
}
