package freezer

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// What the other end has said last is heard, also if it has not read all that was said to it:
// a guard that ends at its deadline while it is asked to thaw has not been killed.
func TestLastWords(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := newPackets(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer ours.close()
	theirs, err := newPackets(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(theirs.send(message{Op: opThawed}, -1), ours.send(message{Op: opThaw}, -1)); err != nil {
		t.Fatal(err)
	}
	theirs.close()
	if m, _, err := ours.receive(); err != nil || m.Op != opThawed {
		t.Errorf("%+v, %v", m, err)
	}
	if _, _, err := ours.receive(); !errors.Is(err, errClosed) {
		t.Errorf("the error is %v", err)
	}
}
