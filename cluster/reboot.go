package cluster

import (
	"bytes"
	"os"
	"slices"
	"strings"

	"github.com/lockerd/lockerd/pidprobe"
)

const (
	// maxPast bounds the boots that a node remembers. What was held under older ones
	// has been reported long since.
	maxPast = 32

	machineIDFile = "/etc/machine-id" // machine-id(5)
)

// machine is a computer and the boot of its kernel, or nothing if that is not
// certain. Name has the host's name beside the machine id, which careless copies of
// a disk image share.
type machine struct {
	name string
	boot string
}

// thisMachine is where this program runs. In a container it is not certain: its data
// directory may be taken to another computer between two starts, and with it all
// that it could be told by.
func thisMachine(host string) machine {
	boot, namespace, _ := strings.Cut(pidprobe.Here(), "/")
	id, err := os.ReadFile(machineIDFile)
	id = bytes.TrimSpace(id)
	if boot == "" || namespace != initialNamespace || err != nil || len(id) == 0 || host == "" {
		return machine{}
	}
	return machine{name: string(id) + " " + host, boot: boot}
}

// boots notes under which boot of which machine the node runs, and returns the
// earlier boots of that machine that it has run under. Their processes are gone, all
// of them, in whatever container they were. It stays so for ever, so these are
// reported at every start: what an earlier one has not got done is made up for.
//
// A data directory that comes from another machine says nothing of that one, which
// may well be running.
func (id *identity) boots(m machine) ([]string, error) {
	switch {
	case m == machine{}:
		return nil, nil
	case id.Machine != m.name:
		id.Machine, id.Boot, id.Past = m.name, m.boot, nil
	case id.Boot == m.boot:
		return id.Past, nil
	default:
		id.Past = append(slices.DeleteFunc(id.Past, func(b string) bool { return b == id.Boot || b == m.boot }), id.Boot)
		id.Past = id.Past[max(len(id.Past)-maxPast, 0):]
		id.Boot = m.boot
	}
	return id.Past, id.save()
}

// pastBoots are the boots of this machine whose processes are gone for certain.
func (n *Node) pastBoots() ([]string, error) {
	if n.identity == nil || n.identity.path == "" {
		return nil, nil // nothing is kept from one start to the next
	}
	m := thisMachine(n.host)
	if n.cfg.machine != nil {
		m = *n.cfg.machine
	}
	return n.identity.boots(m)
}
