package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

const (
	// maxServerText bounds a server's id, name and address in bytes: a host's name
	// and a port.
	maxServerText = 512

	// maxRemoved is how many servers are remembered that were removed from the
	// cluster; the oldest go first.
	maxRemoved = 1024
)

var errNoServer = errors.New("no server is named")

// RemoveServer notes that a server is to be out of the cluster, or is out of it. It
// has nothing to do with locks: it is here because it has to survive what the table
// survives. Without Out it is what was decided, which whoever leads next completes;
// with Out, Raft's configuration is without the server.
type RemoveServer struct {
	ID   string
	Name string // for people, as the next
	Addr string
	Out  bool
}

func (RemoveServer) isCommand() {}

func (c RemoveServer) validate() error {
	if c.ID == "" {
		return errNoServer
	}
	return firstError(
		checkText("server's id", c.ID, maxServerText),
		checkText("server's name", c.Name, maxServerText),
		checkText("server's address", c.Addr, maxServerText),
	)
}

// removeServer keeps the order of the decisions. The list is never changed in place:
// snapshots share it.
func (m *Machine) removeServer(c RemoveServer) Result {
	list := slices.Clone(m.removed)
	i := slices.IndexFunc(list, func(r RemoveServer) bool { return r.ID == c.ID })
	switch {
	case i >= 0:
		list[i].Out = list[i].Out || c.Out
	case len(list) >= maxRemoved:
		list = append(list[1:], c)
	default:
		list = append(list, c)
	}
	m.removed = list
	if c.Name != "" {
		m.nameLost(c.Name, OrderNodeLeft)
		m.settle()
	}
	return Result{}
}

// Removed returns the servers that are or are to be out of the cluster, in the order
// in which that was decided. The list must not be changed.
func (m *Machine) Removed() []RemoveServer { return m.removed }

func appendRemoveServer(b []byte, c RemoveServer) []byte {
	b = appendString(b, c.ID)
	b = appendString(b, c.Name)
	b = appendString(b, c.Addr)
	return appendBool(b, c.Out)
}

func (r *reader) removeServer() RemoveServer {
	return RemoveServer{
		ID: r.text(maxServerText, "server's id"), Name: r.text(maxServerText, "server's name"),
		Addr: r.text(maxServerText, "server's address"), Out: r.bool(),
	}
}

// leastRemoved is how many bytes a removed server takes at least.
const leastRemoved = 5

// appendRemoved writes the part of a snapshot about removed servers, nothing if there
// is none: a zero, where another part would have its count, and the list.
func appendRemoved(b []byte, list []RemoveServer) []byte {
	if len(list) == 0 {
		return b
	}
	b = binary.AppendUvarint(append(b, 0), uint64(len(list)))
	for _, c := range list {
		b = appendRemoveServer(b, c)
	}
	return b
}

func (r *reader) removed(m *Machine) {
	if r.err != nil || len(r.b) == 0 || len(r.b) > 1 && r.b[0] == 0 && r.b[1] == 0 {
		return // the part behind begins with two zeros
	}
	if r.byte() != 0 {
		r.fail("an unknown part")
	}
	n := r.count(maxRemoved, leastRemoved, "removed servers")
	if r.err == nil && n == 0 {
		r.fail("an empty list")
	}
	for range n {
		c := r.removeServer()
		if r.err != nil {
			return
		}
		m.removed = append(m.removed, c)
	}
}

func (m *Machine) checkRemoved() error {
	ids := make(map[string]bool, len(m.removed))
	for _, c := range m.removed {
		if err := c.validate(); err != nil {
			return fmt.Errorf("I13: %w", err)
		}
		ids[c.ID] = true
	}
	if len(ids) != len(m.removed) || len(ids) > maxRemoved {
		return fmt.Errorf("I13: %d servers removed, of %d ids", len(m.removed), len(ids))
	}
	return nil
}
