package fsm

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs testdata/script/*.txt. Every directive but the views is one
// command in an entry of its own; "entry" takes several, one a line. The output
// is all that Apply returned, events first. Commands:
//
//	acquire LOCK,... owner=O [id=N] [turn=N] [all] [shared | slots=N] [try] [limit=MS] [lease=MS]
//	        [host=H pid=N] [start=N] [boot=B] [auto]
//	release [LOCK,...] [owner=O] [id=N] [fence=N]
//	withdraw NODE/SEQ
//	break [LOCK,...] [by=O] [fence=N]
//	gone host=H pid=N [start=N] [boot=B] [fences=N,...] [tickets=N,...]
//	renew owner=O fence=N [attach]
//	suspend FENCE by=B [context=C] [ended]
//	resume FENCE owner=O [by=B] [id=N] [limit=MS] [lease=MS] [host=H pid=N] [auto]
//	tick
//	join NAME [nonce=N]
//	leave NODE
//	away NODE...
//	back NODE...
//	remove ID [name=N] [addr=A] [out]
//	order [NODE,...] [all] by=B [nonce=N] [action=A] [spec=S] [timeout=MS] [within=MS] [attached] [fence=N] [release]
//	report ORDER NODE ready|frozen|failed|thawed [text=T] [took=MS] [cause=C]
//	end ORDER [by=B] [requester]
//
// and with any: now=MS (of the entry), ask=NODE/SEQ, floor=SEQ. Views: table,
// status, claim, nodes, process, removed, orders, new.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/script", func(t *testing.T, path string) {
		m := New()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			a := args(t, d.CmdArgs)
			if out, ok := view(m, d.Cmd, a); ok {
				return out
			}
			e := Entry{Now: Millis(a.number("now"))}
			if d.Cmd == "entry" {
				for line := range strings.Lines(d.Input) {
					cmd, list, err := datadriven.ParseLine(line)
					if err != nil {
						t.Fatal(err)
					}
					e.Proposals = append(e.Proposals, proposal(t, cmd, args(t, list)))
				}
			} else {
				e.Proposals = []Proposal{proposal(t, d.Cmd, a)}
			}
			e = recode(t, e)
			out := printOutcome(m.Apply(e))
			mustCheck(t, m)
			return out
		})
	})
}

// recode puts an entry through the codec, as the log does.
func recode(t testing.TB, e Entry) Entry {
	t.Helper()
	e, err := DecodeEntry(AppendEntry(nil, e))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustCheck(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
}

// scriptArgs are the words of a directive; words without a value are under "".
type scriptArgs struct {
	t      *testing.T
	values map[string]string
	words  []string
}

func args(t *testing.T, list []datadriven.CmdArg) scriptArgs {
	a := scriptArgs{t: t, values: map[string]string{}}
	for _, arg := range list {
		if len(arg.Vals) == 0 {
			a.words = append(a.words, arg.Key)
		} else {
			a.values[arg.Key] = arg.Vals[0]
		}
	}
	return a
}

func (a scriptArgs) number(key string) uint64 {
	v, ok := a.values[key]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		a.t.Fatal(err)
	}
	return n
}

// word returns the i-th word without a value.
func (a scriptArgs) word(i int) string {
	if i < len(a.words) {
		return a.words[i]
	}
	return ""
}

func (a scriptArgs) wordNumber(i int) uint64 {
	n, _ := strconv.ParseUint(a.word(i), 10, 64)
	return n
}

func (a scriptArgs) has(word string) bool {
	for _, w := range a.words {
		if w == word {
			return true
		}
	}
	return false
}

func (a scriptArgs) locks() []string {
	if a.word(0) == "" {
		return nil
	}
	return strings.Split(a.word(0), ",")
}

func (a scriptArgs) id(key string) (id RequestID) {
	id[15] = byte(a.number(key))
	return id
}

func (a scriptArgs) ask(s string) (ask Ask) {
	if s != "" {
		if _, err := fmt.Sscanf(s, "%d/%d", &ask.Node, &ask.Seq); err != nil {
			a.t.Fatalf("%q: %v", s, err)
		}
	}
	return ask
}

func (a scriptArgs) incarnations() (list []Incarnation) {
	for _, w := range a.words {
		n, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			a.t.Fatal(err)
		}
		list = append(list, Incarnation(n))
	}
	return list
}

func (a scriptArgs) process() Process {
	return Process{
		Host: a.values["host"], PID: int32(a.number("pid")), Start: a.number("start"), Boot: a.values["boot"],
	}
}

func numbers[T Fence | Ticket](a scriptArgs, key string) (list []T) {
	if a.values[key] == "" {
		return nil
	}
	for _, s := range strings.Split(a.values[key], ",") {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			a.t.Fatal(err)
		}
		list = append(list, T(n))
	}
	return list
}

func proposal(t *testing.T, cmd string, a scriptArgs) Proposal {
	p := Proposal{Ask: a.ask(a.values["ask"]), Floor: a.number("floor")}
	owner, fence := a.values["owner"], Fence(a.number("fence"))
	switch cmd {
	case "acquire":
		c := Acquire{
			Owner: owner, ID: a.id("id"), Turn: a.number("turn"), Locks: a.locks(), Block: !a.has("try"), Slots: uint32(a.number("slots")),
			Limit: Millis(a.number("limit")), Lease: Millis(a.number("lease")),
			Process: a.process(), Autounlock: a.has("auto"),
		}
		if a.has("all") {
			c.Choice = All
		}
		if a.has("shared") {
			c.Mode = Shared
		} else if _, ok := a.values["slots"]; ok {
			c.Mode = Slots
		}
		p.Command = c
	case "release":
		p.Command = Release{Owner: owner, ID: a.id("id"), Locks: a.locks(), Fence: fence}
	case "withdraw":
		p.Command = Withdraw{Ask: a.ask(a.word(0))}
	case "break":
		p.Command = Break{Locks: a.locks(), By: a.values["by"], Fence: fence}
	case "gone":
		p.Command = ProcessGone{
			Process: a.process(), Fences: numbers[Fence](a, "fences"), Tickets: numbers[Ticket](a, "tickets"),
		}
	case "renew":
		p.Command = Renew{Owner: owner, Fence: fence, Attach: a.has("attach")}
	case "suspend":
		p.Command = Suspend{Fence: Fence(a.wordNumber(0)), By: a.values["by"], Context: a.values["context"], ContextID: a.values["file"], Ended: a.has("ended")}
	case "resume":
		p.Command = Resume{
			Fence: Fence(a.wordNumber(0)), ContextID: a.values["file"], By: a.values["by"], Owner: owner, ID: a.id("id"),
			Limit: Millis(a.number("limit")), Lease: Millis(a.number("lease")), Process: a.process(), Autounlock: a.has("auto"),
		}
	case "tick":
		p.Command = Tick{}
	case "join":
		p.Command = NodeJoin{Name: a.word(0), Nonce: a.id("nonce")}
	case "leave":
		n, _ := strconv.ParseUint(a.word(0), 10, 64)
		p.Command = NodeGone{Node: Incarnation(n)}
	case "away":
		p.Command = NodesAway{Nodes: a.incarnations()}
	case "back":
		p.Command = NodesBack{Nodes: a.incarnations()}
	case "remove":
		p.Command = RemoveServer{ID: a.word(0), Name: a.values["name"], Addr: a.values["addr"], Out: a.has("out")}
	case "order":
		c := OrderOpen{
			Nonce: a.id("nonce"), By: a.values["by"], Action: a.values["action"], Timeout: Millis(a.number("timeout")), Within: Millis(a.number("within")),
			AllNodes: a.has("all"), Attached: a.has("attached"), Fence: fence, ReleaseLock: a.has("release"),
		}
		if spec := a.values["spec"]; spec != "" {
			c.Spec = []byte(spec)
		}
		if a.word(0) != "" && a.word(0) != "all" {
			c.Nodes = strings.Split(a.word(0), ",")
		}
		p.Command = c
	case "report":
		node := Incarnation(a.wordNumber(1))
		c := OrderReport{Order: OrderID(a.wordNumber(0)), Node: node, Text: a.values["text"], Took: Millis(a.number("took"))}
		for c.State.String() != a.word(2) && c.State <= PartThawed {
			c.State++
		}
		for cause := a.values["cause"]; cause != "" && c.Cause.String() != cause && c.Cause <= ThawLocal; {
			c.Cause++
		}
		p.Command = c
	case "end":
		c := OrderEnd{Order: OrderID(a.wordNumber(0)), By: a.values["by"], Reason: OrderThawed}
		if a.has("requester") {
			c.Reason = OrderRequester
		}
		if a.has("away") {
			c.Reason = OrderNodeAway
		}
		p.Command = c
	default:
		t.Fatalf("unknown command %s", cmd)
	}
	return p
}

func view(m *Machine, cmd string, a scriptArgs) (string, bool) {
	var b strings.Builder
	switch cmd {
	case "new":
		*m = *New()
	case "table":
		s := m.Snapshot()
		c := m.Counts()
		fmt.Fprintf(&b, "now %d, %d locks, %d holds, %d waits\n", m.Now(), c.Locks, c.Holds, c.Waits)
		for _, h := range s.Holds() {
			fmt.Fprintf(&b, "hold %s owner=%s fence=%d", strings.Join(h.Locks, ","), printOwner(h.Owner, h.ID), h.Fence)
			if at, ok := h.Deadline(); ok {
				fmt.Fprintf(&b, " until=%d", at)
			}
			if s := h.Suspended; s != nil {
				fmt.Fprintf(&b, " suspended=%d by=%s context=%s job=%d", s.At, s.By, s.Context, s.Job)
				if !s.Ended {
					b.WriteString(" ending")
				}
			}
			if s := h.Resumed; s != nil {
				fmt.Fprintf(&b, " resumed job=%d", s.Job)
			}
			fmt.Fprintln(&b)
		}
		for _, w := range s.Waits() {
			fmt.Fprintf(&b, "wait %s owner=%s ticket=%d\n",
				strings.Join(w.Request.Locks, ","), printOwner(w.Request.Owner, w.Request.ID), w.Ticket)
		}
	case "status":
		printResult(&b, m.Status(a.values["owner"], a.locks()))
	case "claim":
		switch h, w := m.Claim(a.ask(a.word(0))); {
		case h != nil:
			fmt.Fprintf(&b, "hold fence=%d\n", h.Fence)
		case w != nil:
			fmt.Fprintf(&b, "wait ticket=%d\n", w.Ticket)
		default:
			fmt.Fprintln(&b, "nothing")
		}
	case "nodes":
		for _, n := range m.Nodes() {
			fmt.Fprintf(&b, "%d %s", n.Incarnation, n.Name)
			if n.Away {
				fmt.Fprint(&b, " away")
			}
			fmt.Fprintln(&b)
		}
	case "orders":
		open, closed := m.Orders()
		for _, o := range append(open, closed...) {
			printOrder(&b, o)
		}
		if at, ok := m.NextDeadline(); ok {
			fmt.Fprintf(&b, "next deadline %d\n", at)
		}
	case "removed":
		for _, r := range m.Removed() {
			fmt.Fprintf(&b, "%s %s %s out=%v\n", r.ID, r.Name, r.Addr, r.Out)
		}
	case "process":
		holds, waits := m.OnHost(a.values["host"])
		if p := a.number("pid"); p != 0 {
			holds, waits = m.ByProcess(a.values["host"], int32(p))
		}
		for _, h := range holds {
			fmt.Fprintf(&b, "hold fence=%d pid=%d\n", h.Fence, h.Process.PID)
		}
		for _, w := range waits {
			fmt.Fprintf(&b, "wait ticket=%d pid=%d\n", w.Ticket, w.Request.Process.PID)
		}
	default:
		return "", false
	}
	return b.String(), true
}

func printOutcome(o Outcome) string {
	var b strings.Builder
	for _, e := range o.Events {
		if e.OfOrder() {
			fmt.Fprintf(&b, "! %v ", e.Kind)
			printOrder(&b, e.Order)
			continue
		}
		fmt.Fprintf(&b, "! %v %s owner=%s", e.Kind, strings.Join(e.Locks, ","), printOwner(e.Owner, e.ID))
		if e.Fence != 0 {
			fmt.Fprintf(&b, " fence=%d", e.Fence)
		}
		if e.Ticket != 0 {
			fmt.Fprintf(&b, " ticket=%d", e.Ticket)
		}
		if e.Waited {
			fmt.Fprint(&b, " waited")
		}
		if e.Cause != CauseNone {
			fmt.Fprintf(&b, " cause=%v", e.Cause)
		}
		if e.By != "" {
			fmt.Fprintf(&b, " by=%s", e.By)
		}
		if e.Context != "" {
			fmt.Fprintf(&b, " context=%s", e.Context)
		}
		if e.Ask != (Ask{}) {
			fmt.Fprintf(&b, " to=%d/%d", e.Ask.Node, e.Ask.Seq)
		}
		fmt.Fprintln(&b)
	}
	for _, r := range o.Results {
		printResult(&b, r)
	}
	return b.String()
}

func printResult(b *strings.Builder, r Result) {
	fmt.Fprint(b, r.Code)
	if len(r.Locks) > 0 {
		fmt.Fprintf(b, " %s", strings.Join(r.Locks, ","))
	}
	if r.Fence != 0 {
		fmt.Fprintf(b, " fence=%d", r.Fence)
	}
	if r.Ticket != 0 {
		fmt.Fprintf(b, " ticket=%d place=%d", r.Ticket, r.Place)
	}
	if len(r.Broken) > 0 {
		fmt.Fprintf(b, " broken=%s", strings.Join(r.Broken, ","))
	}
	if r.Owner != "" {
		fmt.Fprintf(b, " owner=%s", r.Owner)
	}
	for _, c := range r.Checks {
		fmt.Fprintf(b, " check=%s:%s:%d", c.Lock, c.Process.Host, c.Process.PID)
	}
	if r.Node != 0 {
		fmt.Fprintf(b, " node=%d", r.Node)
	}
	if r.Order != 0 {
		fmt.Fprintf(b, " order=%d", r.Order)
	}
	if r.Reason != "" {
		fmt.Fprintf(b, ": %s", r.Reason)
	}
	fmt.Fprintln(b)
}

func printOrder(b *strings.Builder, o *Order) {
	fmt.Fprintf(b, "%d %s by=%s %v", o.ID, o.Action, o.By, o.State)
	if o.Reason != OrderOpenStill {
		fmt.Fprintf(b, " reason=%q who=%s text=%q", o.Reason, o.Who, o.Text)
	}
	if o.Requester != 0 {
		fmt.Fprintf(b, " requester=%d", o.Requester)
	}
	if o.Fence != 0 {
		fmt.Fprintf(b, " fence=%d", o.Fence)
	}
	fmt.Fprintf(b, " at=%d,%d,%d,%d,%d,%d", o.Opened, o.Went, o.First, o.Frozen, o.Ended, o.Closed)
	for _, p := range o.Parts {
		fmt.Fprintf(b, " [%s/%d %v", p.Name, p.Node, p.State)
		if p.Text != "" {
			fmt.Fprintf(b, " %q %d", p.Text, p.Took)
		}
		if p.Cause != ThawNone {
			fmt.Fprintf(b, " cause=%v", p.Cause)
		}
		b.WriteByte(']')
	}
	b.WriteByte('\n')
}

func printOwner(owner string, id RequestID) string {
	if id != (RequestID{}) {
		return fmt.Sprintf("%s#%d", owner, id[15])
	}
	return owner
}
