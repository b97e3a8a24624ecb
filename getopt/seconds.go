package getopt

import (
	"errors"
	"strconv"
	"time"
)

// Seconds is the value of an option: a time that a number alone gives in seconds, and
// otherwise as in 90s, 5m, 2h. It is not negative.
type Seconds time.Duration

// SignedSeconds are Seconds that may be negative.
type SignedSeconds time.Duration

// maxSeconds bounds a number of seconds: thirty years.
const maxSeconds = 1e9

var errSeconds = errors.New("not a number of seconds up to 1e9")

func parseSeconds(text string) (time.Duration, error) {
	f, err := strconv.ParseFloat(text, 64)
	switch {
	case err == nil && f >= -maxSeconds && f <= maxSeconds: // and no NaN
		return time.Duration(f * float64(time.Second)), nil
	case err == nil:
		return 0, errSeconds
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errSeconds
	}
	return d, nil
}

func formatSeconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// String implements pflag.Value.
func (s *Seconds) String() string { return formatSeconds(time.Duration(*s)) }

// Type implements pflag.Value.
func (s *Seconds) Type() string { return "SECONDS" }

// Set implements pflag.Value.
func (s *Seconds) Set(text string) error {
	d, err := parseSeconds(text)
	if err == nil && d < 0 {
		err = errSeconds
	}
	if err == nil {
		*s = Seconds(d)
	}
	return err
}

// String implements pflag.Value.
func (s *SignedSeconds) String() string { return formatSeconds(time.Duration(*s)) }

// Type implements pflag.Value.
func (s *SignedSeconds) Type() string { return "SECONDS" }

// Set implements pflag.Value.
func (s *SignedSeconds) Set(text string) error {
	d, err := parseSeconds(text)
	if err == nil {
		*s = SignedSeconds(d)
	}
	return err
}
