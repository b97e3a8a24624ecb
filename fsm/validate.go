package fsm

import (
	"errors"
	"fmt"
)

// Bounds of what a command, an entry and a result may carry.
const (
	MaxLocks     = 64   // names in a request
	MaxName      = 1024 // bytes of a lock's name
	MaxOwner     = 1024 // bytes of an owner, and of Break.By
	MaxHost      = 256  // bytes of a host, a boot id, a node's name
	MaxReason    = 1024 // bytes of Result.Reason
	MaxContext   = 4096 // bytes of Suspend.Context, as many as a path has (PATH_MAX)
	MaxContextID = 64   // bytes of Suspend.ContextID
	MaxNamed     = 4096 // fences, and tickets, in a ProcessGone; nodes in a NodesAway or NodesBack
	MaxProposals = 4096 // in an entry
	MaxCommand   = 96 << 10
	MaxEntry     = 64<<10 + MaxCommand

	maxAnswers     = 65_536 // remembered answers of an incarnation
	maxSessions    = 65_536 // open incarnations
	maxResultNames = 1024
	maxResultBytes = 64 << 10 // of all names together
)

var (
	errNoLock   = errors.New("no lock is named")
	errFence    = errors.New("no fence is given")
	errNonce    = errors.New("a node needs a nonce to join")
	errNoSlots  = errors.New("slots mode needs a number of slots, 1 or more")
	errSlots    = errors.New("a number of slots goes with slots mode only")
	errPID      = errors.New("the process id is negative")
	errNoPID    = errors.New("no process is named")
	errNodeName = errors.New("a node needs a name to join")
	errCommand  = errors.New("not a command")
)

// Validate returns why a command cannot be carried out whatever the state of the
// table, in one line for the user, or nil. Whoever proposes a command validates
// it first; the table refuses the ones that get by.
func Validate(c Command) error {
	switch c := c.(type) {
	case Acquire:
		return c.Validate()
	case Release:
		return firstError(checkText("owner", c.Owner, MaxOwner), checkNames(c.Locks))
	case Break:
		return firstError(checkText("name of who breaks", c.By, MaxOwner), checkNames(c.Locks))
	case ProcessGone:
		if len(c.Fences) > MaxNamed || len(c.Tickets) > MaxNamed {
			return fmt.Errorf("more than %d holds or waits of one process", MaxNamed)
		}
		if c.Process.Host == "" || c.Process.PID == 0 {
			return errNoPID
		}
		return checkProcess(c.Process)
	case Renew:
		if c.Fence == 0 {
			return errFence
		}
		return checkText("owner", c.Owner, MaxOwner)
	case NodeJoin:
		switch {
		case c.Name == "":
			return errNodeName
		case c.Nonce == [16]byte{}:
			return errNonce
		}
		return checkText("node name", c.Name, MaxHost)
	case NodesAway:
		return checkNodes(c.Nodes)
	case NodesBack:
		return checkNodes(c.Nodes)
	case RemoveServer:
		return c.validate()
	case Suspend:
		return c.validate()
	case Resume:
		return c.validate()
	case OrderOpen:
		return c.validate()
	case OrderReport:
		return c.validate()
	case OrderEnd:
		return c.validate()
	case Withdraw, Tick, NodeGone:
		return nil
	}
	return errCommand
}

func checkNodes(nodes []Incarnation) error {
	if len(nodes) > MaxNamed {
		return fmt.Errorf("more than %d nodes", MaxNamed)
	}
	return nil
}

// Validate is [Validate] of an Acquire.
func (a Acquire) Validate() error {
	switch {
	case len(a.Locks) == 0:
		return errNoLock
	case a.Choice > All:
		return fmt.Errorf("choice %d is not known", a.Choice)
	case a.Mode > Slots:
		return fmt.Errorf("mode %d is not known", a.Mode)
	case a.Mode == Slots && a.Slots == 0:
		return errNoSlots
	case a.Mode != Slots && a.Slots != 0:
		return errSlots
	}
	return firstError(checkNames(a.Locks), checkText("owner", a.Owner, MaxOwner), checkProcess(a.Process))
}

func checkNames(names []string) error {
	if len(names) > MaxLocks {
		return fmt.Errorf("%d locks are named; at most %d can be", len(names), MaxLocks)
	}
	for i, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
		for _, earlier := range names[:i] {
			if earlier == name {
				return fmt.Errorf("lock %s is named twice", brief(name))
			}
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("a lock's name is empty")
	case len(name) > MaxName:
		return fmt.Errorf("lock name %s is %d bytes long; at most %d are allowed", brief(name), len(name), MaxName)
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] == 0x7f {
			return fmt.Errorf("lock name %s has white space or control characters", brief(name))
		}
	}
	return nil
}

// checkText allows blanks, as user names from elsewhere may have them, but no
// control characters, which would break the lines of the client protocol.
func checkText(what, s string, bound int) error {
	if len(s) > bound {
		return fmt.Errorf("the %s is %d bytes long; at most %d are allowed", what, len(s), bound)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return fmt.Errorf("the %s %s has control characters", what, brief(s))
		}
	}
	return nil
}

func checkProcess(p Process) error {
	if p.PID < 0 {
		return errPID
	}
	return firstError(checkText("host name", p.Host, MaxHost), checkText("boot id", p.Boot, MaxHost))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
