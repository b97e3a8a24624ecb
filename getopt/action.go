package getopt

import (
	"errors"
	"strconv"

	"github.com/spf13/pflag"
)

// Actions defines options by what is to be done when one is met, in the order of the
// command line. That matters where a later one takes back an earlier one.
type Actions struct{ *pflag.FlagSet }

// With defines an option that has a value. kind is how --help calls that.
func (a Actions) With(name, short, kind, help string, set func(text string) error) *pflag.Flag {
	return a.VarPF(&action{kind, set}, name, short, help)
}

// Alone defines an option that has none.
func (a Actions) Alone(name, short, help string, do func()) {
	a.With(name, short, "bool", help, func(text string) error {
		if text != "true" {
			return errors.New("it takes no value")
		}
		do()
		return nil
	}).NoOptDefVal = "true"
}

type action struct {
	kind string
	set  func(text string) error
}

func (s *action) String() string        { return "" }
func (s *action) Type() string          { return s.kind }
func (s *action) Set(text string) error { return s.set(text) }

// Descriptor is for options that name an open file by its number.
func Descriptor(to *int) func(text string) error {
	return func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return errors.New("it is no file descriptor")
		}
		*to = n
		return nil
	}
}
