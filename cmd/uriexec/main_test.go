package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary be uriexec.
func TestMain(m *testing.M) {
	if os.Getenv("URIEXEC_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// bin is a directory with a program uriexec, for PATH.
func bin(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	exe, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "uriexec")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func execute(t *testing.T, name string, args ...string) (out, errs string, code int) {
	t.Helper()
	dir := bin(t)
	if name == "uriexec" {
		name = filepath.Join(dir, name)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "URIEXEC_TEST_MAIN=1", "PATH="+dir+":"+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	code = cmd.ProcessState.ExitCode()
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signaled() {
		code = 128 + int(s.Signal())
	}
	return stdout.String(), stderr.String(), code
}

func TestDecode(t *testing.T) {
	for in, want := range map[string]string{
		"":              "",
		"echo":          "echo",
		"a+b":           "a b",
		"%24HOME":       "$HOME",
		"%2b%2B":        "++",
		"%2525":         "%25",
		"%zz%2":         "%zz%2",
		"%":             "%",
		"%%41":          "%A",
		"%4+1":          "%4 1",
		"%e2%82%AC":     "€",
		"%00":           "\x00",
		"a%0Ab%09c%20d": "a\nb\tc d",
	} {
		if got := decode(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("a+b%20%zz%")
	f.Add("uriexec uriexec%20x")
	f.Fuzz(func(t *testing.T, s string) {
		if got := decode(url.QueryEscape(s)); got != s {
			t.Errorf("%q encoded and decoded is %q", s, got)
		}
		show(s)
	})
}

func TestShow(t *testing.T) {
	for in, want := range map[string]string{
		"%2Ftmp":                                 "{1{ /tmp }1 ",
		"uriexec echo %2527x%2527":               "{1{ uriexec  {2{ echo 'x' }2  }1} ",
		"ssh+h+uriexec+ssh+g+uriexec%20%252524x": "{1{ ssh h uriexec  {2{ ssh g uriexec  {3{ $x }3  }2}  }1} ",
		"/usr/bin/uriexec%09x":                   "{1{ /usr/bin/uriexec\t {2{ x }2  }1} ",
		"nuriexec x":                             "{1{ nuriexec x }1 ",
		"_uriexec uriexecs uriexec":              "{1{ _uriexec uriexecs uriexec }1 ",
		"uriexecs uriexec  x":                    "{1{ uriexecs uriexec  {2{  x }2  }1} ",
	} {
		if got := show(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	deep := show(strings.Repeat("uriexec ", 1000))
	if !strings.HasPrefix(deep, "{1{ uriexec  {2{ ") || !strings.HasSuffix(deep, " }1} ") {
		t.Error("deep nesting is cut off")
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a b"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("URIEXEC_TEST_VALUE", "value")
	for _, c := range []struct {
		args []string
		code int
		out  string
		err  string
	}{
		{[]string{"echo", "%24URIEXEC_TEST_VALUE"}, 0, "value\n", ""},
		{[]string{"echo", "'%24URIEXEC_TEST_VALUE'"}, 0, "$URIEXEC_TEST_VALUE\n", ""},
		{[]string{"--shell", "/bin/echo+-n", "a%20b", "c"}, 0, "a b c", ""},
		{[]string{"--shell", "echo", "a"}, 0, "a\n", ""},
		{[]string{"--shell=printf++%5B%25s%5D", "a", "b"}, 0, "[a b]", ""},
		{[]string{"--cd", dir + "/a%20b", "pwd"}, 0, dir + "/a b\n", ""},
		{[]string{"-cd=" + dir + "/a+b", "pwd"}, 0, dir + "/a b\n", ""},
		{[]string{"echo", "--cd", "x", "-n"}, 0, "--cd x -n\n", ""},
		{[]string{"--", "echo", "--", "x"}, 0, "-- x\n", ""},
		{[]string{"exit", "7"}, 7, "", ""},
		{[]string{"kill+-TERM+$$"}, 143, "", ""},
		{
			[]string{"--show", "--cd", "%2Ftmp", "uriexec", "echo", "%2527x%2527"},
			0,
			"cd    {1{ /tmp }1 \nshell {1{ /bin/sh -c }1 \ncmd   {1{ uriexec  {2{ echo 'x' }2  }1} \n", "",
		},
		{[]string{"--show", "--cd", "/no/such", "x"}, 0, "cd    {1{ /no/such }1 \nshell {1{ /bin/sh -c }1 \ncmd   {1{ x }1 \n", ""},
		{[]string{"--show", "--noshow", "echo", "x"}, 0, "x\n", ""},
		{[]string{"--version"}, 0, "Version: " + version + "\n", ""},
		{nil, 64, "", "%Error: uriexec: No command specified, see 'uriexec --help'\n"},
		{[]string{"--cd", "/no%2Fsuch", "x"}, 66, "", "%Error: uriexec: Could not chdir to \"/no/such\": no such file or directory\n"},
		{[]string{"--shell", "no-such-shell+-c", "x"}, 127, "", "%Error: uriexec: exec failed: 'no-such-shell -c x': executable file not found in $PATH\n"},
		{[]string{"--shell", "/tmp", "x"}, 126, "", "%Error: uriexec: exec failed: '/tmp x': "},
		{[]string{"--shell", "", "x"}, 64, "", "%Error: uriexec: --shell is empty"},
		{[]string{"--cd"}, 64, "", "%Error: uriexec: option --cd requires a value"},
		{[]string{"--sh", "x"}, 64, "", "%Error: uriexec: unknown option --sh"},
		{[]string{"--show=1", "x"}, 64, "", "%Error: uriexec: option --show takes no value"},
		{[]string{"echo", "a%00b"}, 64, "", "%Error: uriexec: %00 in \"echo a\\x00b\""},
	} {
		var out, errs string
		var code int
		if c.err != "" { // it comes back, so that a process of its own is not needed
			var stdout, stderr bytes.Buffer
			code = run(c.args, &stdout, &stderr)
			out, errs = stdout.String(), stderr.String()
		} else {
			out, errs, code = execute(t, "uriexec", c.args...)
		}
		if code != c.code || out != c.out || !strings.HasPrefix(errs, c.err) || (c.err == "") != (errs == "") {
			t.Errorf("%q: %d, want %d\n%q\n%q", c.args, code, c.code, out, errs)
		}
	}
	if out, _, code := execute(t, "uriexec", "--help"); code != 0 || out != help {
		t.Errorf("--help: %d, %q", code, out)
	}
}

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	const script = `trap "" HUP INT QUIT; exec "$@"`
	const command = `grep SigIgn /proc/self/status`
	without, _, _ := execute(t, "sh", "-c", script, "sh", "sh", "-c", command)
	with, _, _ := execute(t, "sh", "-c", script, "sh", "uriexec", command)
	if with != without || with == "" {
		t.Errorf("with uriexec %q, without %q", with, without)
	}
}

// escape encodes as Perl's URI::Escape::uri_escape does.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-_.!~*'()", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// quote is for one more shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Every byte that an argument can hold arrives, through two shells and two
// uriexecs, as an argument and as input of each of the shells.
func TestEveryByteSurvives(t *testing.T) {
	var all []byte
	for c := 1; c < 256; c++ {
		all = append(all, byte(c))
	}
	payload := string(all) + `'"\$HOME` + "`id`;&|<>(){}*?[a]!#~=%41+ 'it''s' \\\n end"
	// What the last shell is to execute.
	command := "printf %s " + quote(payload)
	encode := func(s string) string { return strings.ReplaceAll(escape(s), "'", "%27") }

	for name, line := range map[string]string{
		"one shell":                        "uriexec " + quote(escape(command)),
		"one shell, unquoted":              "uriexec " + strings.NewReplacer("(", "%28", ")", "%29", "*", "%2A", "!", "%21", "~", "%7E").Replace(encode(command)),
		"two shells":                       "sh -c " + quote("uriexec "+quote(escape(command))),
		"two uriexecs":                     "uriexec " + quote(escape("uriexec "+quote(escape(command)))),
		"a shell between":                  "uriexec " + quote(escape("sh -c "+quote("uriexec "+quote(escape(command))))),
		"without a shell, printf directly": "uriexec --shell printf+%25s " + quote(escape(payload)),
	} {
		out, errs, code := execute(t, "sh", "-c", line)
		if code != 0 || out != payload {
			t.Errorf("%s: exit %d\n got %q\nwant %q\n%s", name, code, out, payload, errs)
		}
	}
}
