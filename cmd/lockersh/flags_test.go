package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/client"
)

func TestOptionRules(t *testing.T) {
	for _, tc := range []struct {
		args    string
		words   string
		literal bool
		err     string
		check   func(*raw) bool
	}{
		{args: "--lock x cmd --lock y", words: "cmd --lock y", check: func(r *raw) bool { return len(r.locks) == 1 }},
		{args: "--lock=x cmd", words: "cmd", check: func(r *raw) bool { return r.locks[0] == "x" }},
		{args: "-lock x cmd", words: "cmd", check: func(r *raw) bool { return r.locks[0] == "x" }},
		{args: "-lock=x -- cmd", words: "cmd", literal: true},
		{args: "--LOCK x --TimeOut 3 cmd", words: "cmd", check: func(r *raw) bool { return time.Duration(r.timeout) == 3*time.Second }},
		{args: "--t 3 c", words: "c", check: func(r *raw) bool { return time.Duration(r.timeout) == 3*time.Second }},
		{args: "--p 7 c", words: "c", check: func(r *raw) bool { return r.port == "7" }},
		{args: "--dh h c", words: "c", check: func(r *raw) bool { return r.hosts == "h" }},
		{args: "--sl 3 c", words: "c", check: func(r *raw) bool { return r.slots == 3 }},
		{args: "--verb --noverbose c", words: "c", check: func(r *raw) bool { return !r.verbose }},
		{args: "--locklist --no-locklist c", words: "c", check: func(r *raw) bool { return !r.list }},
		{args: "--verbose -noverb c", words: "c", check: func(r *raw) bool { return !r.verbose }},
		{args: "--hold 1.5 --grace 2m c", words: "c", check: func(r *raw) bool {
			return time.Duration(r.hold) == 1500*time.Millisecond && time.Duration(r.grace) == 2*time.Minute
		}},
		{args: "--lock -x c", words: "c", check: func(r *raw) bool { return r.locks[0] == "-x" }},
		{args: "--lock x - c", words: "- c"},
		{args: "--", literal: true},
		{args: ""},
		{args: "--bogus c", err: "Unknown option: bogus"},
		{args: "--nolock c", err: "Unknown option: nolock"},
		{args: "--v c", err: "Option v is ambiguous (verbose, version)"},
		{args: "--ve c", err: "Option ve is ambiguous (verbose, version)"},
		{args: "--lock", err: "Option lock requires an argument"},
		{args: "--timeout soon c", err: `Value "soon" invalid for option timeout`},
		{args: "--timeout -1 c", err: `Value "-1" invalid for option timeout`},
		{args: "--timeout NaN c", err: `Value "NaN" invalid for option timeout`},
		{args: "--timeout 1e300 c", err: `Value "1e300" invalid for option timeout`},
		{args: "--slots -1 c", err: `Value "-1" invalid for option slots`},
		{args: "--no-verbose=1 c", err: "Option no-verbose does not take an argument"},
		{args: "--=x c", err: "Unknown option: "},
		{args: "--no c", err: "Unknown option: no"},
	} {
		var r raw
		words, literal, err := parse(flags(&r), strings.Fields(tc.args))
		if got := strings.Join(words, " "); got != tc.words || literal != tc.literal {
			t.Errorf("%q: words %q, literal %v", tc.args, got, literal)
		}
		if (err == nil) != (tc.err == "") || (err != nil && err.Error() != tc.err) {
			t.Errorf("%q: %v, want %q", tc.args, err, tc.err)
		}
		if err == nil && tc.check != nil && !tc.check(&r) {
			t.Errorf("%q gave %+v", tc.args, r)
		}
	}
}

func TestSettings(t *testing.T) {
	s, err := read([]string{"--lock", "a:b", "--lock", "c::a", "--dhost", "h:i:7", "echo", "x"})
	if err != nil {
		t.Fatal(err)
	}
	o := s.locker
	if !reflect.DeepEqual(o.Locks, []string{"a", "b", "c"}) || !reflect.DeepEqual(o.Hosts, []string{"h", "i:7"}) {
		t.Errorf("locks %q, hosts %q", o.Locks, o.Hosts)
	}
	if !o.Autounlock || o.HoldLimit != client.NoLimit || !o.KeepOnClose || o.WaitLimit != 0 || o.NeedFence {
		t.Errorf("%+v", o)
	}
	if !reflect.DeepEqual(s.job.Argv, []string{"/bin/sh", "-c", "echo x"}) {
		t.Errorf("argv %q", s.job.Argv)
	}
	s, err = read([]string{"--lock", "a", "--timeout", "5", "--hold", "7", "--", "echo", "x  y"})
	if err != nil {
		t.Fatal(err)
	}
	if s.locker.WaitLimit != 5*time.Second || s.locker.HoldLimit != 7*time.Second {
		t.Errorf("%+v", s.locker)
	}
	if !reflect.DeepEqual(s.job.Argv, []string{"echo", "x  y"}) {
		t.Errorf("argv %q", s.job.Argv)
	}
}

func TestHelpNamesEveryOption(t *testing.T) {
	var r raw
	fs := flags(&r)
	text := usage + fs.FlagUsagesWrapped(79) + usageEnd
	for _, line := range strings.Split(text, "\n") {
		if len(line) > 79 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	for name := range map[string]bool{"lock": true, "dhost": true, "port": true, "path": true, "locklist": true, "timeout": true, "hold": true, "lease": true, "try": true, "shared": true, "slots": true, "all": true, "json": true, "fence-fd": true, "on-lost": true, "grace": true, "verbose": true, "help": true, "version": true} {
		if !strings.Contains(text, "--"+name) {
			t.Errorf("--%s is not in the help", name)
		}
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("--lock\x00x\x00true")
	f.Add("--slots\x004\x00--no-verbose\x00--\x00a")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := read(strings.Split(line, "\x00"))
		if err == nil && !s.Help && !s.Version && !s.list && (len(s.locker.Locks) == 0 || len(s.job.Argv) == 0) {
			t.Errorf("%q is taken without a lock or a command", line)
		}
	})
}
