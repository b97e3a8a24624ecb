package fsm

// Millis is replicated time: a count of milliseconds stamped by leaders, not a
// reading of any clock. It never falls, and it stands still during elections.
type Millis uint64

// Fence is a fencing token: unique in the cluster, strictly increasing over
// successive grants, never reused, kept by snapshots. Zero means none.
type Fence uint64

// Ticket numbers waits in the order in which they joined the queues. Zero means none.
type Ticket uint64

// Incarnation names one run of one node. The table gives it out ([NodeJoin]) and
// never gives the same one twice. Zero means none.
type Incarnation uint64

// Ask names one request as a node made it: the node's incarnation and its own
// number for the request. The zero Ask belongs to the leader's own jobs, which
// are idempotent and need no remembered answers.
type Ask struct {
	Node Incarnation
	Seq  uint64
}

// RequestID tells several requests of one owner apart. Zero is the request of
// an owner that makes one at a time, as IPC::Locker clients do.
type RequestID [16]byte

// Process identifies a process in the cluster. PID zero means that none is
// known. Start is in clock ticks since boot (proc(5), field 22), zero if not
// known; Boot is the kernel's boot id, empty if not known.
type Process struct {
	Host  string
	PID   int32
	Start uint64
	Boot  string
}

// Mode says how a hold shares its lock.
type Mode uint8

const (
	Exclusive Mode = iota // the only holder
	Shared                // any number of shared holders
	Slots                 // at most Acquire.Slots holders
)

func (m Mode) String() string {
	return word(int(m), "exclusive", "shared", "slots")
}

// Choice says how many of the named locks a request wants.
type Choice uint8

const (
	Any Choice = iota // the first free one, in the order given
	All               // all of them at once, or none
)

// Command is one of the closed set below.
type Command interface{ isCommand() }

// Acquire asks for locks. The claimant is (Owner, ID): the same claimant asking
// again gets the same hold back, with the limits and the process of the new
// request, or keeps its place in the queue. With a Turn it is Superseded if a later
// one has come before it, or a Release of that ID without a fence.
type Acquire struct {
	Owner      string
	ID         RequestID
	Turn       uint64   // rises with each time that the claimant asks, of an ID made for one Lock; 0 = not counted
	Locks      []string // in order of preference; no empty name, no name twice
	Choice     Choice
	Mode       Mode
	Slots      uint32 // with Mode Slots: the number of holders the lock admits, 1 or more
	Block      bool   // queue when busy; otherwise Busy
	Limit      Millis // longest time held; 0 = none
	Lease      Millis // ends unless renewed within this time; 0 = none
	Process    Process
	Autounlock bool // the hold and the wait end with Process
}

// Release ends holds and waits of a claimant. With Fence it ends that one hold
// and refuses (NotHeld) if it is over already. Without, it ends whatever Owner
// holds or waits for among Locks, of request ID if that is set, of any if not.
// With Fence, Locks are not looked at, and an Owner or ID that is set must match.
// With ID and without Fence it also ends, in advance, all Acquires of the claimant
// that have a Turn.
type Release struct {
	Owner string
	ID    RequestID
	Locks []string
	Fence Fence
}

// Withdraw undoes the Acquire that was made as Ask, because its client has gone:
// a wait leaves the queues, and a hold that was never delivered is released. It
// does nothing once another Acquire of the same claimant has taken the claim over. If it
// comes before that Acquire, the Acquire will do nothing. A hold to which a Renew
// has attached itself is not ended by withdrawing the Renew.
type Withdraw struct{ Ask Ask }

// Break ends whoever holds Locks. With Fence, only that hold, and only if it has
// one of Locks, where any are named (otherwise NotHeld).
type Break struct {
	Locks []string
	By    string
	Fence Fence
}

// ProcessGone ends autounlock holds and waits of a process that has ended: those
// among Fences and Tickets that still belong to it, and no others, so that a late
// report cannot end anything newer.
type ProcessGone struct {
	Process Process
	Fences  []Fence
	Tickets []Ticket
}

// Renew proves that the owner of a hold lives: its lease starts anew. With
// Attach the hold's Ask becomes this proposal's, so that the news of its end
// reaches the connection that the owner has now.
type Renew struct {
	Owner  string
	Fence  Fence
	Attach bool
}

// Tick moves time to its entry's stamp; expiry follows from that.
type Tick struct{}

// NodeJoin opens an incarnation for a node. Result.Node is the incarnation. The
// same Nonce again gets the same one.
type NodeJoin struct {
	Name  string
	Nonce [16]byte
}

// NodeGone ends an incarnation and the waits that came in by it, never holds.
type NodeGone struct{ Node Incarnation }

// NodesAway says that incarnations are out of touch with the leader: until they are
// back, nothing is granted to the places of their clients in the queues, as nobody
// could be told. Those keep their tickets, and others pass them.
type NodesAway struct{ Nodes []Incarnation }

// NodesBack says that incarnations are in touch again. So does whatever one proposes.
type NodesBack struct{ Nodes []Incarnation }

func (Acquire) isCommand()     {}
func (Release) isCommand()     {}
func (Withdraw) isCommand()    {}
func (Break) isCommand()       {}
func (ProcessGone) isCommand() {}
func (Renew) isCommand()       {}
func (Tick) isCommand()        {}
func (NodeJoin) isCommand()    {}
func (NodeGone) isCommand()    {}
func (NodesAway) isCommand()   {}
func (NodesBack) isCommand()   {}

// Proposal is a command as a node sent it. Floor promises that every request of
// Ask.Node below it has been answered, so the table may forget those answers.
type Proposal struct {
	Ask     Ask
	Floor   uint64
	Command Command
}

// Entry is what one Raft log entry holds: proposals applied in order at one time.
type Entry struct {
	Now       Millis
	Proposals []Proposal
}
