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
//	{:index 4, :time 1200, :process 3, :type :ok, :f :acquire, :value ["l1" 42]}
func WriteEDN(w io.Writer, ops []Op) error {
	b := bufio.NewWriter(w)
	for _, op := range ops {
		process := strconv.Itoa(op.Process)
		if op.Process == Nemesis {
			process = ":nemesis"
		}
		fmt.Fprintf(b, "{:index %d, :time %d, :process %s, :type :%s, :f :%s, :value %s}\n",
			op.Index, op.Time.Nanoseconds(), process, op.Type, op.F, ednValue(op))
	}
	return b.Flush()
}

func ednValue(op Op) string {
	switch {
	case op.F == Read && op.Owner != "":
		return ednString(op.Owner)
	case len(op.Locks) > 0:
		var parts []string
		for _, l := range op.Locks {
			parts = append(parts, ednString(l))
		}
		if op.Fence > 0 {
			parts = append(parts, strconv.FormatUint(op.Fence, 10))
		}
		return "[" + strings.Join(parts, " ") + "]"
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
