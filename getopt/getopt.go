// Package getopt reads command lines by the rules of Perl's Getopt::Long, which the
// programs of IPC::Locker follow and existing scripts rely on.
//
// Options that IPC::Locker does not have are marked as [New]: whatever prefix was
// short for one of its options stays so.
//
// It also has what all programs answer in the same way: see [Program].
package getopt

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// Parse sets the flags of args as pflag itself does not: one dash for two, any case,
// any prefix that only one option has, and no in front of one that has no value. It
// returns the other words. They end the options, unless mixed. An error is one line
// for the user, without a full stop.
func Parse(fs *pflag.FlagSet, args []string, mixed bool) (words []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return append(words, args...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			words = append(words, arg)
			if !mixed {
				return append(words, args...), nil
			}
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		f, negated, err := find(fs, strings.ToLower(name))
		switch {
		case err != nil:
			return nil, err
		case f.NoOptDefVal == "" && !given:
			if len(args) == 0 {
				return nil, fmt.Errorf("option --%s requires a value", f.Name)
			}
			value, args = args[0], args[1:]
		case f.NoOptDefVal != "" && given:
			return nil, fmt.Errorf("option --%s takes no value", f.Name)
		case negated:
			value = "false"
		case !given:
			value = f.NoOptDefVal
		}
		if err := fs.Set(f.Name, value); err != nil {
			return nil, fmt.Errorf("option --%s: %q is not what it takes", f.Name, value)
		}
	}
	return words, nil
}

func find(fs *pflag.FlagSet, name string) (f *pflag.Flag, negated bool, err error) {
	found := matching(fs, name)
	if len(found) == 0 {
		if rest, ok := strings.CutPrefix(name, "no"); ok {
			for _, f := range matching(fs, strings.TrimPrefix(rest, "-")) {
				if f.NoOptDefVal != "" {
					found, negated = append(found, f), true
				}
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, false, fmt.Errorf("unknown option --%s", name)
	case 1:
		return found[0], negated, nil
	}
	return nil, false, fmt.Errorf("--%s is short for --%s and for --%s", name, found[0].Name, found[1].Name)
}

// New is the annotation of options that IPC::Locker does not have. They take no
// prefix away from those that it has.
const New = "new"

// matching is the option of a name, or those that begin with it.
func matching(fs *pflag.FlagSet, name string) (found []*pflag.Flag) {
	if f := fs.Lookup(name); f != nil || name == "" {
		if f != nil {
			found = append(found, f)
		}
		return found
	}
	var added []*pflag.Flag
	fs.VisitAll(func(f *pflag.Flag) {
		switch {
		case f.Hidden || !strings.HasPrefix(f.Name, name):
		case f.Annotations[New] != nil:
			added = append(added, f)
		default:
			found = append(found, f)
		}
	})
	if len(found) == 1 {
		return found
	}
	return append(found, added...)
}
