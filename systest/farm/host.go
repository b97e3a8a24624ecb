package farm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bridge is a network of hosts, one for each node, and of ourselves. Everything
// in it belongs to our network namespace or to those of the hosts, which exist
// only as open descriptors: the kernel removes all of it with our process.
type bridge struct {
	hosts []*host
}

// host is a network namespace with one interface.
type host struct {
	ip    string
	port  string // the bridge's end of its cable
	space *os.File
}

// network is where the hosts are: it exists in our own namespaces only.
const network = "10.83.0."

// newBridge makes n hosts. It refuses to touch a network that is in use.
func newBridge(n int) (*bridge, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("look at the network: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 && l.Flags&net.FlagUp != 0 {
			return nil, fmt.Errorf("interface %s is up: hosts are made in an empty network namespace only", l.Name)
		}
	}
	b := &bridge{}
	err = ip("link set lo up", "link add br0 type bridge", "addr add "+network+"254/24 dev br0", "link set br0 up")
	for i := 0; i < n && err == nil; i++ {
		err = b.add(i + 1)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bridge) add(i int) error {
	h := &host{ip: fmt.Sprint(network, i), port: fmt.Sprint("port", i)}
	var err error
	if h.space, err = newNamespace(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	b.hosts = append(b.hosts, h)
	inside := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.space.Fd())
	err = ip("link add "+h.port+" type veth peer name eth0 netns "+inside,
		"link set "+h.port+" master br0", "link set "+h.port+" up")
	if err != nil {
		return err
	}
	return onOwnThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		return ip("link set lo up", "addr add "+h.ip+"/24 dev eth0", "link set eth0 up")
	})
}

func (b *bridge) addresses() []Address {
	addrs := make([]Address, len(b.hosts))
	for i, h := range b.hosts {
		addrs[i] = Address{h.ip, 1751}
	}
	return addrs
}

func (b *bridge) close() error {
	var errs []error
	for _, h := range b.hosts {
		errs = append(errs, h.space.Close())
	}
	if _, err := net.InterfaceByName("br0"); err == nil {
		errs = append(errs, ip("link del br0"))
	}
	return errors.Join(errs...)
}

// cut lets the bridge drop what goes over the host's port. Both ends of the cable
// stay up, as they do when a switch or a host dies.
func (h *host) cut() error { return command("bridge", "link set dev "+h.port+" state 0") }

func (h *host) heal() error { return command("bridge", "link set dev "+h.port+" state 3") }

// newNamespace makes a network namespace that lives as long as its descriptor.
func newNamespace() (space *os.File, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		space, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return space, err
}

// enter moves this thread into the host's network.
func (h *host) enter() error {
	if err := unix.Setns(int(h.space.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network of %s: %w", h.ip, err)
	}
	return nil
}

// rename moves this thread to a host of another name, which is as this one else.
func rename(name string) error {
	err := unix.Unshare(unix.CLONE_NEWUTS)
	if err == nil {
		err = unix.Sethostname([]byte(name))
	}
	if err != nil {
		return fmt.Errorf("give a host the name %s: %w", name, err)
	}
	return nil
}

// CanName says whether we may give hosts names, as [Options].Named wants it. In a
// container root may not.
func CanName() bool {
	c := exec.Command("true")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS}
	return c.Run() == nil
}

// onOwnThread calls f on a thread that goes back to our network and our host's name
// afterwards. The thread must live on: the kernel takes its end for that of the
// program, and would kill the nodes it has started.
func onOwnThread(f func() error) error {
	runtime.LockOSThread()
	var homes []*os.File
	for _, kind := range []string{"net", "uts"} {
		home, err := os.Open("/proc/thread-self/ns/" + kind)
		if err != nil {
			runtime.UnlockOSThread()
			return err
		}
		defer home.Close()
		homes = append(homes, home)
	}
	err := f()
	for _, home := range homes {
		if back := unix.Setns(int(home.Fd()), 0); back != nil {
			// Nothing else may ever run on this thread: it stays locked.
			return errors.Join(err, fmt.Errorf("go back to our host: %w", back))
		}
	}
	runtime.UnlockOSThread()
	return err
}

// ip runs ip(8) with each of the argument lists.
func ip(lines ...string) error {
	for _, l := range lines {
		if err := command("ip", l); err != nil {
			return err
		}
	}
	return nil
}

func command(name, args string) error {
	out, err := exec.Command(name, strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args, err, strings.TrimSpace(string(out)))
	}
	return nil
}
