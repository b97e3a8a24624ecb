package history

import "time"

// Event is a line of a server's event stream, stamped when it was read. What it
// tells of had happened by then.
type Event struct {
	Time time.Duration `json:"time"`
	Node string        `json:"node"`
	// Gap marks the beginning of a stream: what came before on this node may be missing.
	Gap bool `json:"gap,omitempty"`

	Kind   string   `json:"kind,omitempty"` // granted, queued, released, withdrawn, superseded, away or back
	Locks  []string `json:"locks,omitempty"`
	Owner  string   `json:"owner,omitempty"`
	Fence  uint64   `json:"fence,omitempty"`
	Ticket uint64   `json:"ticket,omitempty"`
	Mode   string   `json:"mode,omitempty"`
	PID    int32    `json:"pid,omitempty"`
	Cause  string   `json:"cause,omitempty"`
	By     string   `json:"by,omitempty"`
	At     uint64   `json:"at_ms,omitempty"` // of any size: a server may have counted nonsense
}
