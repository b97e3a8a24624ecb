package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/getopt"
)

const (
	// defaultFreeze is how long a freeze lasts if nothing is said.
	defaultFreeze = time.Minute

	// longestFreeze is the most that the nodes take.
	longestFreeze = 365 * 24 * time.Hour
)

// freezeTime is a flag for how long a freeze lasts: 0 is the default, less is for ever.
type freezeTime struct{ getopt.SignedSeconds }

var errFreezeTime = fmt.Errorf("wants a number of seconds, at most %d (365 days); less than 0 is never", int(longestFreeze.Seconds()))

// Set implements pflag.Value.
func (t *freezeTime) Set(text string) error {
	if err := t.SignedSeconds.Set(text); err != nil || time.Duration(t.SignedSeconds) > longestFreeze {
		return errFreezeTime
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && f != 0 && t.SignedSeconds == 0 {
		t.SignedSeconds = getopt.SignedSeconds(math.Copysign(1, f)) // less than is counted, but not 0
	}
	return nil
}

// milliseconds are for the nodes, less than 0 for none: the least of a time is one.
func (t *freezeTime) milliseconds() int64 {
	switch d := time.Duration(t.SignedSeconds); {
	case d < 0:
		return -1
	case d == 0:
		return defaultFreeze.Milliseconds()
	default:
		return (d + time.Millisecond - 1).Milliseconds()
	}
}

const (
	// defaultWork is how long a node may take to write a job to a file, or start it from
	// there, if nothing is said.
	defaultWork = 10 * time.Minute

	// longestWork is the most that the nodes take.
	longestWork = longestFreeze
)

// workTime is a flag for how long that may take.
type workTime struct{ getopt.Seconds }

var errWorkTime = fmt.Errorf("wants a number of seconds, more than 0 and at most %d (365 days)", int(longestWork.Seconds()))

// Set implements pflag.Value.
func (t *workTime) Set(text string) error {
	if err := t.Seconds.Set(text); err != nil || t.Seconds == 0 || time.Duration(t.Seconds) > longestWork {
		return errWorkTime
	}
	return nil
}

func (t *workTime) milliseconds() int64 {
	return (time.Duration(t.Seconds) + time.Millisecond - 1).Milliseconds()
}

// flagError says what is wrong with a flag, a bad number in plain words.
func flagError(_ *cobra.Command, err error) error {
	var bad *pflag.InvalidValueError
	var number *strconv.NumError
	if errors.As(err, &bad) && errors.As(err, &number) && number.Func != "ParseBool" {
		return fmt.Errorf("--%s: %q is no number that it takes", bad.GetFlag().Name, number.Num)
	}
	return err
}
