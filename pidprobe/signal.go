package pidprobe

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signal sends a signal to a process of this host, and to no other that may have
// got its number since. It returns [ErrDead] if the process has ended, and
// [ErrUnsure] if Start is not given or cannot be compared.
//
// Kernels before 5.3 cannot hold on to a process. There its start time is read
// just before kill(2).
func Signal(p Process, sig syscall.Signal) error {
	if p.PID < 1 {
		return ErrPID
	}
	if err := signal(p, sig); err != nil {
		return fmt.Errorf("signal %d to process %d: %w", int(sig), p.PID, err)
	}
	return nil
}

func signal(p Process, sig syscall.Signal) error {
	if p.Start == 0 {
		return ErrUnsure
	}
	if p.ofAnotherBoot() {
		return ErrDead
	}
	fd, err := unix.PidfdOpen(int(p.PID), 0)
	switch err {
	case nil:
		defer unix.Close(fd)
	case unix.ENOSYS:
		fd = -1
	case unix.ESRCH:
		return ErrDead
	default:
		return err
	}
	st, ok := readStat(p.PID)
	switch {
	case !ok && fd >= 0 && ended(fd):
		return ErrDead
	case !ok:
		return ErrUnsure
	case st.start != p.Start || st.dead:
		return ErrDead
	}
	if fd >= 0 {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	} else {
		err = unix.Kill(int(p.PID), sig)
	}
	if errors.Is(err, unix.ESRCH) {
		return ErrDead
	}
	return err
}
