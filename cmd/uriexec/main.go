// Command uriexec decodes a URI-encoded command and becomes it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the build.
var version = "2.0"

// Exit codes of our own: sysexits(3), and what shells use for a command that
// cannot be executed or found.
const (
	exitUsage    = 64
	exitNoDir    = 66
	exitCannot   = 126
	exitNotFound = 127
)

const help = `uriexec - decode a URI-encoded command and execute it

Usage: uriexec [OPTION]... COMMAND...

Joins the words of the command by one space, decodes them once, and becomes
/bin/sh -c with the result: each %HH is the byte of that hexadecimal number, each
+ a space. However many shells and remote shells the encoded command passes on its
way here, it arrives as it was, if the encoding left them nothing to interpret.

Options:
      --cd DIR        change to this directory first, URI-encoded
      --shell SHELL   shell and its arguments to put before the command,
                      URI-encoded (default "/bin/sh -c")
      --show          print what would be executed, and by which nested uriexec;
                      for people, not for scripts
      --version       print the version
      --help          print this text

Options end at the first other word, and cannot be shortened.

Exit status: that of the command, and
   64  wrong usage
   66  the directory of --cd cannot be entered
  126  the shell cannot be executed
  127  there is no such shell

Examples:
  uriexec echo %24HOME                 what echo $HOME prints
  ssh host uriexec --cd %2Ftmp ls+%22My+Files%22
  uriexec --shell /bin/echo+-n a%20b   prints a b
`

type options struct {
	help, version, show bool
	cd, shell           string
	hasCD               bool
	words               []string
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	switch {
	case err != nil:
		return complain(stderr, exitUsage, "%v, see 'uriexec --help'", err)
	case o.help:
		fmt.Fprint(stdout, help)
		return 0
	case o.version:
		fmt.Fprintf(stdout, "Version: %s\n", version)
		return 0
	case len(o.words) == 0:
		return complain(stderr, exitUsage, "No command specified, see 'uriexec --help'")
	}
	text := strings.Join(o.words, " ")
	if o.show {
		if o.hasCD {
			fmt.Fprintf(stdout, "cd    %s\n", show(o.cd))
		}
		fmt.Fprintf(stdout, "shell %s\ncmd   %s\n", show(o.shell), show(text))
		return 0
	}
	return o.exec(decode(text), stderr)
}

// exec becomes the command. It returns only if that fails.
func (o *options) exec(command string, stderr io.Writer) int {
	dir, shell := decode(o.cd), decode(o.shell)
	for _, s := range []string{dir, shell, command} {
		if strings.Contains(s, "\x00") {
			return complain(stderr, exitUsage, "%%00 in %q: no argument can hold that byte", s)
		}
	}
	if o.hasCD {
		if err := os.Chdir(dir); err != nil {
			return complain(stderr, exitNoDir, "Could not chdir to %q: %v", dir, reason(err))
		}
	}
	argv := append(strings.Fields(shell), command)
	if len(argv) == 1 {
		return complain(stderr, exitUsage, "--shell is empty, see 'uriexec --help'")
	}
	path, err := lookup(argv[0])
	if err == nil {
		if signal.Ignored(syscall.SIGINT) {
			// As shells do it for what they put into the background. The Go runtime
			// keeps SIG_IGN for SIGHUP and SIGINT alone.
			signal.Ignore(syscall.SIGQUIT)
		}
		err = syscall.Exec(path, argv, os.Environ())
	}
	code := exitCannot
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		code = exitNotFound
	}
	return complain(stderr, code, "exec failed: '%s': %v", strings.Join(argv, " "), reason(err))
}

// lookup finds a program as execvp(3) does, that of the current directory
// included if PATH says so.
func lookup(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	return path, err
}

// reason is an error without what we have said already.
func reason(err error) error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return err
}

func complain(w io.Writer, code int, format string, args ...any) int {
	fmt.Fprintf(w, "%%Error: uriexec: "+format+"\n", args...)
	return code
}

// parse reads the options. They are few and cannot be shortened, so that a word
// of the command is never taken for one.
func parse(args []string) (*options, error) {
	o := &options{shell: "/bin/sh -c"}
	for len(args) > 0 {
		arg := args[0]
		if len(arg) < 2 || arg[0] != '-' {
			break
		}
		args = args[1:]
		if arg == "--" {
			break
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		name = strings.ToLower(name)
		switch name {
		case "cd", "shell":
			if !given {
				if len(args) == 0 {
					return nil, fmt.Errorf("option --%s requires a value", name)
				}
				value, args = args[0], args[1:]
			}
			if name == "cd" {
				o.cd, o.hasCD = value, true
			} else {
				o.shell = value
			}
			continue
		case "show":
			o.show = true
		case "noshow", "no-show":
			o.show = false
		case "version":
			o.version = true
		case "help":
			o.help = true
		default:
			return nil, fmt.Errorf("unknown option %s", arg)
		}
		if given {
			return nil, fmt.Errorf("option --%s takes no value", name)
		}
	}
	o.words = args
	return o, nil
}
