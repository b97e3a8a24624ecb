package fsm

// Code says how a command ended.
type Code uint8

const (
	Done       Code = iota // it did what it says, or there was nothing to do; a repeated Acquire: what it got is over
	Granted                // Fence and Locks say what is held
	Queued                 // Ticket and Place say where
	Busy                   // not granted and not queued; Owner says because of whom
	NotHeld                // Release by fence, Renew, Suspend, Resume: that hold is over, or its owner has it no more: then Reason says why
	Refused                // Reason says why, in words for the user
	Stranger               // Ask.Node is no incarnation of the table: join again
	Stale                  // Ask.Seq was answered and forgotten: a late duplicate
	Superseded             // Acquire: its claimant has asked again since, or given up
)

func (c Code) String() string {
	return word(int(c), "done", "granted", "queued", "busy", "not-held", "refused", "stranger", "stale", "superseded")
}

// Result answers one command.
type Result struct {
	Code   Code
	Fence  Fence    // Granted
	Locks  []string // Granted, Renew: what is held; Release, Break: what was ended, up to a bound that only mass releases reach
	Owner  string   // who holds (or waits first for) the first busy lock of those named, after the command; empty if none
	Ticket Ticket   // Queued
	Place  int      // Queued: 1 is next; 0 is not known (a repeated request)
	Broken []string // Break: the owners whose holds were ended, each once, up to the same bound
	Checks []Check  // Acquire with autounlock: busy locks passed over whose holder has autounlock too, in order
	Node   Incarnation
	Order  OrderID // OrderOpen, OrderEnd
	Reason string  // Refused, NotHeld
}

// Check names a holder that may be dead (autounlock_check on the wire).
type Check struct {
	Lock    string
	Process Process
}

// EventKind is one of the closed set below.
type EventKind uint8

const (
	EventGranted   EventKind = iota + 1 // a hold began, at once or after a wait
	EventQueued                         // a wait began
	EventReleased                       // a hold ended; Cause says why
	EventWithdrawn                      // a wait ended without a grant; Cause says why

	// A claim was taken over by a later request of the same claimant; Ask is the
	// earlier one. Cause is CauseOwner if its wait has left the queues, and
	// CauseNone if the claim lives on.
	EventSuperseded

	// EventRenewed: a later request of its claimant has taken a claim over, or the
	// same asked again. Ask and Process are that request's.
	EventRenewed

	EventAway // the node of a wait is out of touch: others may pass it
	EventBack // it is in touch again, or its client has asked by another node: none may any more

	// Of an order, which Event.Order is as it was then; of the other fields, By and At
	// alone are set.
	EventOrderOpened
	EventOrderFreezing // all nodes are ready, and are to go on
	EventOrderFrozen   // all have
	EventOrderEnded    // all are to undo it
	EventOrderClosed   // all have

	// EventSuspended: a hold goes on without a holder. Ask and Process are those that
	// had it, By has asked for that, and Context says where the job is.
	EventSuspended
)

func (k EventKind) String() string {
	return word(int(k), "none", "granted", "queued", "released", "withdrawn", "superseded", "renewed", "away", "back",
		"order-opened", "order-freezing", "order-frozen", "order-ended", "order-closed", "suspended")
}

// Cause says why a hold or a wait ended.
type Cause uint8

const (
	CauseNone        Cause = iota
	CauseOwner             // its owner asked
	CauseLimit             // the hold limit passed
	CauseLease             // the lease ran out
	CauseBroken            // broken by Event.By
	CauseProcessGone       // its process ended
	CauseUndelivered       // the client had gone: Withdraw
	CauseNodeGone          // the node it waited by is gone
	CauseOrder             // the order that it was held for is closed
	CauseResumed           // it was suspended, and goes on under a new fence
)

func (c Cause) String() string {
	return word(int(c), "none", "owner", "limit", "lease", "broken", "process", "undelivered", "node", "order", "resumed")
}

func word(i int, words ...string) string {
	if i < len(words) {
		return words[i]
	}
	return "unknown"
}

// Event is something the outside must know. Ask is the request the event
// concerns, so that the node which made it can tell its client; events come in
// the order in which things happened.
type Event struct {
	Kind       EventKind
	Ask        Ask
	Waited     bool // EventGranted: the grant ends a wait, and the client behind Ask is to be told
	Owner      string
	ID         RequestID
	Locks      []string
	Fence      Fence
	Ticket     Ticket // EventGranted: of the wait that it ends, if it ends one
	Mode       Mode
	Process    Process
	Autounlock bool // the claim ends with Process
	Cause      Cause
	By         string
	At         Millis
	Order      *Order
	Context    string // EventSuspended
}

// OfOrder reports whether the event is of an order.
func (e Event) OfOrder() bool { return e.Kind >= EventOrderOpened && e.Kind <= EventOrderClosed }

// Outcome is what applying an entry gave: one result a proposal, and the events.
type Outcome struct {
	Results []Result
	Events  []Event
}
