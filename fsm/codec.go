package fsm

import (
	"encoding/binary"
	"fmt"
)

// Kinds of commands on the wire and in the log. They are never reused. Up to 31
// they belong to the lock table; from 32 on, to the order ledger.
const (
	kindAcquire byte = iota + 1
	kindRelease
	kindWithdraw
	kindBreak
	kindProcessGone
	kindRenew
	kindTick
	kindNodeJoin
	kindNodeGone
	kindNodesAway
	kindNodesBack
	kindRemoveServer
	kindSuspend
	kindResume
)

const (
	kindOrderOpen byte = iota + 32
	kindOrderReport
	kindOrderEnd
)

// Flags of requests and of holds.
const (
	flagBlock = 1 << iota
	flagAutounlock
	flagAttached
	flagSuspended
	flagResumed
)

// AppendEntry appends the encoding of e:
//
//	version, uvarint Now, uvarint count, proposals
func AppendEntry(dst []byte, e Entry) []byte {
	dst = append(dst, version)
	dst = binary.AppendUvarint(dst, uint64(e.Now))
	dst = binary.AppendUvarint(dst, uint64(len(e.Proposals)))
	for _, p := range e.Proposals {
		dst = AppendProposal(dst, p)
	}
	return dst
}

// DecodeEntry reads what [AppendEntry] wrote, and nothing else: [ErrNewer] for a
// version or a kind of a later release, [ErrCorrupt] otherwise.
func DecodeEntry(b []byte) (Entry, error) {
	if len(b) > MaxEntry {
		return Entry{}, fmt.Errorf("reading a log entry: %w: %d bytes long", ErrCorrupt, len(b))
	}
	r := &reader{b: b}
	r.version()
	var e Entry
	e.Now = r.millis()
	if n := r.count(MaxProposals, 3, "proposals"); n > 0 {
		e.Proposals = make([]Proposal, n)
		for i := range e.Proposals {
			e.Proposals[i] = r.proposal()
		}
	}
	if err := r.end(); err != nil {
		return Entry{}, fmt.Errorf("reading a log entry: %w", err)
	}
	return e, nil
}

// AppendProposal appends the encoding of p, which knows its own length:
//
//	version, kind, uvarint length, (Ask, uvarint Floor, fields of the command)
func AppendProposal(dst []byte, p Proposal) []byte {
	dst = append(dst, version, kindOf(p.Command))
	start := len(dst)
	dst = appendAsk(dst, p.Ask)
	dst = binary.AppendUvarint(dst, p.Floor)
	dst = appendCommand(dst, p.Command)
	return prefixLen(dst, start)
}

// DecodeProposal reads one proposal from the front of b and returns the rest.
func DecodeProposal(b []byte) (Proposal, []byte, error) {
	r := &reader{b: b}
	p := r.proposal()
	if r.err != nil {
		return Proposal{}, nil, fmt.Errorf("reading a proposal: %w", r.err)
	}
	return p, r.b, nil
}

func (r *reader) proposal() Proposal {
	r.version()
	kind := r.byte()
	if r.err == nil && kind > kindResume && (kind < kindOrderOpen || kind > kindOrderEnd) {
		r.err, r.b = fmt.Errorf("%w (command kind %d is not known here)", ErrNewer, kind), nil
	}
	body := r.sub(MaxCommand, "command")
	p := Proposal{Ask: body.ask(), Floor: body.uvarint(), Command: body.command(kind)}
	if err := body.end(); err != nil && r.err == nil {
		r.err, r.b = err, nil
	}
	return p
}

// kindOf returns 0, which no reader accepts, for what is not a command.
func kindOf(c Command) byte {
	switch c.(type) {
	case Acquire:
		return kindAcquire
	case Release:
		return kindRelease
	case Withdraw:
		return kindWithdraw
	case Break:
		return kindBreak
	case ProcessGone:
		return kindProcessGone
	case Renew:
		return kindRenew
	case Tick:
		return kindTick
	case NodeJoin:
		return kindNodeJoin
	case NodeGone:
		return kindNodeGone
	case NodesAway:
		return kindNodesAway
	case NodesBack:
		return kindNodesBack
	case RemoveServer:
		return kindRemoveServer
	case Suspend:
		return kindSuspend
	case Resume:
		return kindResume
	case OrderOpen:
		return kindOrderOpen
	case OrderReport:
		return kindOrderReport
	case OrderEnd:
		return kindOrderEnd
	}
	return 0
}

func appendCommand(b []byte, c Command) []byte {
	switch c := c.(type) {
	case Acquire:
		b = appendAcquire(b, c)
	case Release:
		b = appendString(b, c.Owner)
		b = appendID(b, c.ID)
		b = appendStrings(b, c.Locks)
		b = binary.AppendUvarint(b, uint64(c.Fence))
	case Withdraw:
		b = appendAsk(b, c.Ask)
	case Break:
		b = appendStrings(b, c.Locks)
		b = appendString(b, c.By)
		b = binary.AppendUvarint(b, uint64(c.Fence))
	case ProcessGone:
		b = appendProcess(b, c.Process)
		b = appendNumbers(b, c.Fences)
		b = appendNumbers(b, c.Tickets)
	case Renew:
		b = appendString(b, c.Owner)
		b = binary.AppendUvarint(b, uint64(c.Fence))
		b = appendBool(b, c.Attach)
	case NodeJoin:
		b = appendString(b, c.Name)
		b = append(b, c.Nonce[:]...)
	case NodeGone:
		b = binary.AppendUvarint(b, uint64(c.Node))
	case NodesAway:
		b = appendNumbers(b, c.Nodes)
	case NodesBack:
		b = appendNumbers(b, c.Nodes)
	case RemoveServer:
		b = appendRemoveServer(b, c)
	case Suspend:
		b = appendSuspend(b, c)
	case Resume:
		b = appendResume(b, c)
	case OrderOpen:
		b = appendOrderOpen(b, c)
	case OrderReport:
		b = appendOrderReport(b, c)
	case OrderEnd:
		b = appendOrderEnd(b, c)
	}
	return b
}

func (r *reader) command(kind byte) Command {
	switch kind {
	case kindAcquire:
		return r.acquire()
	case kindRelease:
		return Release{
			Owner: r.text(MaxOwner, "owner"), ID: r.id(), Locks: r.names(), Fence: Fence(r.uvarint()),
		}
	case kindWithdraw:
		return Withdraw{Ask: r.ask()}
	case kindBreak:
		return Break{Locks: r.names(), By: r.text(MaxOwner, "name of who breaks"), Fence: Fence(r.uvarint())}
	case kindProcessGone:
		return ProcessGone{
			Process: r.process(), Fences: readNumbers[Fence](r), Tickets: readNumbers[Ticket](r),
		}
	case kindRenew:
		return Renew{Owner: r.text(MaxOwner, "owner"), Fence: Fence(r.uvarint()), Attach: r.bool()}
	case kindTick:
		return Tick{}
	case kindNodeJoin:
		c := NodeJoin{Name: r.text(MaxHost, "node name")}
		copy(c.Nonce[:], r.bytes(len(c.Nonce)))
		return c
	case kindNodeGone:
		return NodeGone{Node: Incarnation(r.uvarint())}
	case kindNodesAway:
		return NodesAway{Nodes: readNumbers[Incarnation](r)}
	case kindNodesBack:
		return NodesBack{Nodes: readNumbers[Incarnation](r)}
	case kindRemoveServer:
		return r.removeServer()
	case kindSuspend:
		return r.suspend()
	case kindResume:
		return r.resume()
	case kindOrderOpen:
		return r.orderOpen()
	case kindOrderReport:
		return r.orderReport()
	case kindOrderEnd:
		return r.orderEnd()
	}
	r.fail("command kind %d", kind)
	return nil
}

func appendAcquire(b []byte, a Acquire) []byte {
	b = appendString(b, a.Owner)
	b = appendID(b, a.ID)
	b = binary.AppendUvarint(b, a.Turn)
	b = appendStrings(b, a.Locks)
	b = append(b, byte(a.Choice), byte(a.Mode))
	b = binary.AppendUvarint(b, uint64(a.Slots))
	var flags byte
	if a.Block {
		flags |= flagBlock
	}
	if a.Autounlock {
		flags |= flagAutounlock
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(a.Limit))
	b = binary.AppendUvarint(b, uint64(a.Lease))
	return appendProcess(b, a.Process)
}

func (r *reader) acquire() Acquire {
	a := Acquire{Owner: r.text(MaxOwner, "owner"), ID: r.id(), Turn: r.uvarint(), Locks: r.names()}
	a.Choice = Choice(r.byte())
	a.Mode = r.mode()
	if a.Choice > All {
		r.fail("choice %d", a.Choice)
	}
	a.Slots = uint32(r.upTo(1<<32-1, "slots"))
	flags := r.byte()
	if flags > flagBlock|flagAutounlock {
		r.fail("flags %#x", flags)
	}
	a.Block, a.Autounlock = flags&flagBlock != 0, flags&flagAutounlock != 0
	a.Limit, a.Lease = r.millis(), r.millis()
	a.Process = r.process()
	return a
}

func (r *reader) mode() Mode {
	m := Mode(r.byte())
	if m > Slots {
		r.fail("mode %d", m)
	}
	return m
}

func appendNumbers[T Fence | Ticket | Incarnation](b []byte, list []T) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, v := range list {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return b
}

func readNumbers[T Fence | Ticket | Incarnation](r *reader) []T {
	n := r.count(MaxNamed, 1, "list")
	if n == 0 {
		return nil
	}
	list := make([]T, n)
	for i := range list {
		list[i] = T(r.uvarint())
	}
	return list
}
