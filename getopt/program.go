package getopt

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
)

// Exit statuses that mean the same in every program, after sysexits(3).
const (
	ExitUsage    = 64
	ExitInternal = 70
	ExitOutput   = 74 // of ErrOutput
)

// Program is what all programs tell their users in the same way.
type Program struct {
	Name, Version string
	// Usage and UsageEnd are what --help prints before and after the options.
	Usage, UsageEnd string
	// Statuses are the exit statuses of errors; the first counts that fits. Others are
	// ExitInternal, but ErrOutput is ExitOutput.
	Statuses []Status
}

// Status is the exit status of a kind of error.
type Status struct {
	Of   error
	Code int
}

// Standard are the options that every program has.
type Standard struct{ Help, Version bool }

// Add defines the options.
func (s *Standard) Add(fs *pflag.FlagSet) {
	fs.BoolVar(&s.Help, "help", false, "print this text")
	fs.BoolVar(&s.Version, "version", false, "print the version")
}

// Asked says whether one was given: then nothing else counts.
func (s *Standard) Asked() bool { return s.Help || s.Version }

// Answer prints what was asked for, and returns the exit status. fs has the options with
// their defaults.
func (p *Program) Answer(s Standard, fs *pflag.FlagSet) int {
	if s.Help {
		return p.Print(p.Usage + fs.FlagUsagesWrapped(79) + p.UsageEnd)
	}
	return p.Print("Version: " + p.Version + "\n")
}

// Misused tells of a command line that cannot be.
func (p *Program) Misused(err error) int {
	fmt.Fprintf(os.Stderr, "%%Error: %s: %v; see --help\n", p.Name, err)
	return ExitUsage
}

// Status is the exit status of an error.
func (p *Program) Status(err error) int {
	for _, s := range p.Statuses {
		if errors.Is(err, s.Of) {
			return s.Code
		}
	}
	if errors.Is(err, ErrOutput) {
		return ExitOutput
	}
	return ExitInternal
}

// Complain tells of an error, and returns its exit status.
func (p *Program) Complain(err error) int {
	fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
	return p.Status(err)
}
