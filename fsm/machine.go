package fsm

// Hold is one grant. Its fields are never changed once it is in the table: a
// renewal puts a new Hold in its place, so a snapshot only copies pointers.
type Hold struct {
	Fence      Fence
	Ask        Ask // the request that took it last
	Owner      string
	ID         RequestID
	Locks      []string // one, or all those of an All request
	Mode       Mode
	Slots      uint32
	Limit      Millis
	Lease      Millis
	Granted    Millis
	Renewed    Millis
	Process    Process
	Autounlock bool
}

// Wait is a queued request; like Hold, never changed once in the table. Its
// Acquire's place in every queue is its Ticket.
type Wait struct {
	Ticket  Ticket
	Ask     Ask
	Since   Millis
	Request Acquire
}

// Node is an open incarnation.
type Node struct {
	Incarnation Incarnation
	Name        string
	Nonce       [16]byte
}

// Machine is the lock table. It is not safe for concurrent use; views returned
// by its methods are immutable and stay valid.
type Machine struct{}

// The method set that the other packages build on:
//
//	func New() *Machine
//	func Restore(b []byte) (*Machine, error)
//	func (m *Machine) Apply(e Entry) Outcome        total for every decodable entry
//	func (m *Machine) Now() Millis
//	func (m *Machine) NextDeadline() (Millis, bool) earliest expiry, if any hold has one
//	func (m *Machine) Status(owner string, locks []string) Result
//	                        the STATUS rule: Granted with Locks = the first of locks held by owner (and its Fence),
//	                        else Busy with Owner, else Done when none is held
//	func (m *Machine) Claim(a Ask) (*Hold, *Wait)   what that request holds or waits for now; at most one is not nil
//	func (m *Machine) Holders(lock string) []*Hold  by fence
//	func (m *Machine) Queue(lock string) iter.Seq[*Wait] in order
//	func (m *Machine) QueueLen(lock string) int
//	func (m *Machine) Nodes() []Node                by incarnation
//	func (m *Machine) ByProcess(host string, pid int32) ([]*Hold, []*Wait)  with autounlock, by fence and by ticket
//	func (m *Machine) OnHost(host string) ([]*Hold, []*Wait)                the same for every process of a host
//	func (m *Machine) Counts() Counts               {Locks, Holds, Waits, Nodes int; Fence Fence; Ticket Ticket}
//	func (m *Machine) Snapshot() *Snapshot          copies pointers only; safe to read while the machine goes on
//	func (s *Snapshot) Holds() []*Hold              sorted by first lock name, then fence
//	func (s *Snapshot) Waits() []*Wait              sorted by ticket
//	func (s *Snapshot) Encode(write func([]byte) error) error   in chunks of at most about 64 KiB; equal states give equal bytes
//	func (m *Machine) Digest() uint64
//	func (m *Machine) Check() error
//
//	func AppendEntry(dst []byte, e Entry) []byte          version byte first
//	func DecodeEntry(b []byte) (Entry, error)             ErrNewer for a version or kind of a later release, ErrCorrupt otherwise
//	func AppendProposal(dst []byte, p Proposal) []byte    self-delimiting; DecodeProposal(b) (Proposal, rest []byte, error)
//	func AppendResult(dst []byte, r Result) []byte        DecodeResult(b) (Result, rest, error)
//	func AppendEvent(dst []byte, e Event) []byte          DecodeEvent(b) (Event, rest, error)
