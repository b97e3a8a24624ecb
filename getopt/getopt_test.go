package getopt

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

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

func TestSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "5": 5 * time.Second, "1.5": 1500 * time.Millisecond, "2m": 2 * time.Minute, "1e9": 1e9 * time.Second,
		"-5": -5 * time.Second, "-1m": -time.Minute,
	} {
		var s SignedSeconds
		if err := s.Set(text); err != nil || time.Duration(s) != want {
			t.Errorf("%s: %v, %v; want %v", text, time.Duration(s), err, want)
		}
		unsigned := Seconds(7)
		err := unsigned.Set(text)
		if want < 0 && (err == nil || unsigned != 7) || want >= 0 && (err != nil || time.Duration(unsigned) != want) {
			t.Errorf("%s: %v, %v, as one that is not negative", text, time.Duration(unsigned), err)
		}
	}
	for _, text := range []string{"", "x", "1e10", "-1e10", "NaN", "Inf", "1e999", "5 s", "5x"} {
		var s SignedSeconds
		if err := s.Set(text); err == nil {
			t.Errorf("%q is %v", text, time.Duration(s))
		}
	}
	if s := Seconds(90500 * time.Millisecond); s.String() != "90.5" {
		t.Error(s.String())
	}
}

func TestStatus(t *testing.T) {
	p := Program{Statuses: []Status{{io.EOF, 3}, {io.ErrUnexpectedEOF, 4}}}
	for err, want := range map[error]int{
		io.EOF: 3, fmt.Errorf("read: %w", io.ErrUnexpectedEOF): 4, errors.Join(io.ErrUnexpectedEOF, io.EOF): 3, io.ErrNoProgress: ExitInternal,
	} {
		if got := p.Status(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

func TestActions(t *testing.T) {
	for args, want := range map[string]string{
		"--stop --run": "stop run fd=0 []",
		"--run --stop": "run stop fd=0 []",
		"-F 7":         "fd=7 []",
		"--fd=-1":      `invalid argument "-1" for "-F, --fd" flag: it is no file descriptor`,
		"--fd x":       `invalid argument "x" for "-F, --fd" flag: it is no file descriptor`,
		"--run=no":     `invalid argument "no" for "--run" flag: it takes no value`,
	} {
		fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
		fs.SetOutput(io.Discard)
		act := Actions{fs}
		got, fd := "", 0
		act.Alone("run", "", "", func() { got += "run " })
		act.Alone("stop", "", "", func() { got += "stop " })
		act.With("fd", "F", "N", "", Descriptor(&fd))
		if err := fs.Parse(strings.Fields(args)); err != nil {
			got = err.Error()
		} else {
			got += fmt.Sprintf("fd=%d %v", fd, fs.Args())
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", args, got, want)
		}
	}
}
