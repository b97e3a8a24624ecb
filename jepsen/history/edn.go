package history

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// WriteEDN writes a history as Jepsen's tools (Knossos, Elle) read it, an operation a
// line:
//
//	{:index 4, :time 1200, :process 3, :type :ok, :f :acquire, :value ["l1" 42], :owner "u3"}
//	{:index 7, :time 1500, :process 4, :type :ok, :f :read, :value ["l1" "u3"]}
//
// A value is a lock and what is said of it, as in jepsen.independent: the fence of an
// acquire or a release, the owner that a read has found. It is nil where nothing is known
// yet, as in the call of a read, or where there is none, as when the lock is free. Several
// locks are a vector of their own. An unknown outcome ends the process, which Knossos
// takes it for, too.
//
// Knossos pairs each line of a numbered process with its call. So what clients only note
// has the process :note, as the nemesis has :nemesis, and :of says whose it is.
func WriteEDN(w io.Writer, ops []Op) error {
	b := bufio.NewWriter(w)
	for _, op := range ops {
		process, more := strconv.Itoa(op.Process), ""
		switch {
		case op.Process == Nemesis:
			process = ":nemesis"
		case op.note():
			process, more = ":note", ", :of "+process
		}
		if op.Owner != "" && op.F != Read {
			more += ", :owner " + ednString(op.Owner)
		}
		if op.Error != "" {
			more += ", :error " + ednString(op.Error)
		}
		fmt.Fprintf(b, "{:index %d, :time %d, :process %s, :type :%s, :f :%s, :value %s%s}\n",
			op.Index, op.Time.Nanoseconds(), process, op.Type, op.F, ednValue(op), more)
	}
	return b.Flush()
}

// note says whether a line is neither the call nor the return of an operation.
func (op Op) note() bool {
	switch op.F {
	case Lost, Queued, Death, Stopped, Continued, Frozen, Thaw, Probe:
		return true
	}
	return false
}

func ednValue(op Op) string {
	said := "nil"
	switch {
	case op.F == Read && op.Type == OK && op.Owner != "":
		said = ednString(op.Owner)
	case op.Fence > 0 && op.F != Read:
		said = strconv.FormatUint(op.Fence, 10)
	case op.F == Break && op.Value != "":
		said = ednString(op.Value)
	}
	switch {
	case len(op.Locks) == 1:
		return "[" + ednString(op.Locks[0]) + " " + said + "]"
	case len(op.Locks) > 1:
		var names []string
		for _, l := range op.Locks {
			names = append(names, ednString(l))
		}
		return "[[" + strings.Join(names, " ") + "] " + said + "]"
	case op.F == Write && op.Value != "":
		return "[" + op.Value + " " + said + "]" // a number
	case op.Value != "":
		return ednString(op.Value)
	}
	return "nil"
}

// ednString quotes a string as EDN wants it: with the escapes of Java, of which no
// more than these are needed.
func ednString(s string) string {
	r := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\r", `\r`)
	return `"` + r.Replace(s) + `"`
}
