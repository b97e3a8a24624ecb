package pidprobe

import "golang.org/x/sys/unix"

// lookout answers for batches of process numbers, with one system call for all
// those that it has been asked about before. It keeps a pidfd for them: whether
// the process has ended is a poll(2) of it, 0.07 µs each in a batch, against 0.7
// for kill(2), which takes zombies for alive, and 10 for reading /proc/PID/stat.
//
// Invariant: a verdict is true of a moment after the question arrived.
type lookout struct {
	maxFD int                      // keep no descriptors from here on: others need some
	slots [lookoutSize]lookoutSlot // number modulo size
	batch uint64
	polls []unix.PollFd
	asked []*lookoutSlot // of each poll
}

func newLookout() *lookout { return &lookout{maxFD: budget()} }

const lookoutSize = 1024 // a power of two

// lookoutSlot has a pidfd of pid, if that is not 0. In the batch named its place
// in polls is at.
type lookoutSlot struct {
	pid   int32
	fd    int32
	batch uint64
	at    int32
}

// look fills in the verdict for each number.
func (l *lookout) look(pids []int32, verdicts []Verdict) {
	l.batch++
	l.polls, l.asked = l.polls[:0], l.asked[:0]
	for i, pid := range pids {
		s := &l.slots[pid&(lookoutSize-1)]
		if s.pid != 0 && s.batch == l.batch {
			if s.pid != pid { // two of a batch in one slot
				verdicts[i] = Check(Process{PID: pid})
			}
			continue
		}
		if s.pid != pid {
			s.drop()
			fd, err := unix.PidfdOpen(int(pid), 0)
			switch err {
			case nil:
				if fd >= l.maxFD { // the lowest free one: so many are in use
					verdicts[i] = Alive
					if ended(fd) {
						verdicts[i] = Dead
					}
					unix.Close(fd)
					continue
				}
				s.pid, s.fd = pid, int32(fd)
			case unix.ESRCH:
				verdicts[i] = Dead
				continue
			default:
				verdicts[i] = checkWithout(Process{PID: pid})
				continue
			}
		}
		s.batch, s.at = l.batch, int32(len(l.polls))
		l.polls = append(l.polls, unix.PollFd{Fd: s.fd, Events: unix.POLLIN})
		l.asked = append(l.asked, s)
	}
	if len(l.polls) == 0 {
		return
	}
	for {
		_, err := unix.Poll(l.polls, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // of memory, if anything
			for i := range l.polls {
				l.polls[i].Revents = unix.POLLERR
			}
		}
		break
	}
	for i, pid := range pids {
		s := &l.slots[pid&(lookoutSize-1)]
		if s.pid == pid && s.batch == l.batch {
			verdicts[i] = l.verdict(s)
		}
	}
	for i, s := range l.asked {
		if l.polls[i].Revents != 0 {
			s.drop()
		}
	}
}

// verdict reads the poll of a slot. The process that had the number has ended,
// but another may have it now.
func (l *lookout) verdict(s *lookoutSlot) Verdict {
	if l.polls[s.at].Revents == 0 {
		return Alive
	}
	return Check(Process{PID: s.pid})
}

func (s *lookoutSlot) drop() {
	if s.pid != 0 {
		unix.Close(int(s.fd))
		*s = lookoutSlot{}
	}
}

func (l *lookout) close() {
	for i := range l.slots {
		l.slots[i].drop()
	}
}
