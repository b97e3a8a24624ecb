package getopt

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args  string
		mixed bool
		want  string // values and words, or the error
	}{
		{"", true, "port= debug=false fork=false []"},
		{"--port 7 --debug", true, "port=7 debug=true fork=false []"},
		{"-port=7 -d", true, "port=7 debug=true fork=false []"},
		{"--PO 7 --Debug", true, "port=7 debug=true fork=false []"},
		{"--p 7", true, "port=7 debug=false fork=false []"}, // though there is the new peer
		{"--pe 7", true, "port= debug=false fork=false [] peer=7"},
		{"--port -7", true, "port=-7 debug=false fork=false []"},
		{"--fork --nofork", true, "port= debug=false fork=false []"},
		{"--fork --no-debug", true, "port= debug=false fork=true []"},
		{"a --port 7 b", true, "port=7 debug=false fork=false [a b]"},
		{"a --port 7 b", false, "port= debug=false fork=false [a --port 7 b]"},
		{"--debug -- --port 7", true, "port= debug=true fork=false [--port 7]"},
		{"a - b", true, "port= debug=false fork=false [a - b]"},
		{"--port", true, "option --port requires a value"},
		{"--debug=1", true, "option --debug takes no value"},
		{"--noport", true, "unknown option --noport"},
		{"--x", true, "unknown option --x"},
		{"--=1", true, "unknown option --"},
	} {
		fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
		port := fs.String("port", "", "")
		peer := fs.String("peer", "", "")
		_ = fs.SetAnnotation("peer", New, []string{})
		debug := fs.Bool("debug", false, "")
		fork := fs.Bool("fork", false, "")
		words, err := Parse(fs, strings.Fields(c.args), c.mixed)
		got := fmt.Sprintf("port=%s debug=%v fork=%v %v", *port, *debug, *fork, words)
		if *peer != "" {
			got += " peer=" + *peer
		}
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.args, got, c.want)
		}
	}
}
