package freezer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// kernelThread is PF_KTHREAD of include/linux/sched.h, in field 9 of proc_pid_stat(5).
const kernelThread = 0x00200000

// exiting is PF_EXITING, in the same place.
const exiting = 0x00000004

// stat is what /proc/PID/stat tells of a process, or /proc/PID/task/TID/stat of a
// thread.
type stat struct {
	pid, parent, session int32
	state                byte
	flags                uint32
	threads              int32
	start                uint64 // clock ticks since boot
	guard                bool   // it is called as guards are
}

var errStat = errors.New("not the text of proc_pid_stat(5)")

// parseStat reads the fields 1, 3, 4, 6, 9, 20 and 22.
func parseStat(text []byte) (s stat, err error) {
	// The name in field 2 may itself have blanks and parentheses.
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return s, errStat
	}
	pid, ok := number(text, 31)
	if !ok {
		return s, errStat
	}
	s.pid = int32(pid)
	s.guard = bytes.HasSuffix(text[:end], []byte(" ("+guardName))
	rest := text[end+1:]
	for field := 3; field <= 22; field++ {
		for len(rest) > 0 && rest[0] == ' ' {
			rest = rest[1:]
		}
		word := rest
		if i := bytes.IndexByte(rest, ' '); i >= 0 {
			word = rest[:i]
		}
		rest = rest[len(word):]
		if len(word) == 0 {
			return s, errStat
		}
		var n uint64
		switch field {
		case 3:
			s.state = word[0]
			continue
		case 6:
			if word[0] == '-' { // it has been reaped while the kernel wrote this
				s.state, word = 'X', word[1:]
			}
			n, ok = number(word, 31)
		case 4, 20:
			n, ok = number(word, 31)
		case 9:
			n, ok = number(word, 32)
		case 22:
			n, ok = number(word, 64)
		default:
			continue
		}
		if !ok {
			return s, errStat
		}
		switch field {
		case 4:
			s.parent = int32(n)
		case 6:
			s.session = int32(n)
		case 9:
			s.flags = uint32(n)
		case 20:
			s.threads = int32(n)
		case 22:
			s.start = n
		}
	}
	return s, nil
}

// number reads the decimal number that text begins with, of so many bits.
func number(text []byte, bits int) (n uint64, ok bool) {
	for i, c := range text {
		if c < '0' || c > '9' {
			break
		}
		next := n*10 + uint64(c-'0')
		if i >= 20 || next < n || bits < 64 && next>>bits != 0 {
			return 0, false
		}
		n, ok = next, true
	}
	return n, ok
}

// halted says whether the thread does not run: it is stopped, held by a tracer, or
// has ended.
func (s *stat) halted() bool {
	switch s.state {
	case 'T', 't', 'Z', 'X', 'x':
		return true
	}
	return false
}

// ended says whether the process has: a first thread that has is only the first of
// several.
func (s *stat) ended() bool {
	return s.state == 'X' || s.state == 'x' || s.state == 'Z' && s.threads <= 1
}

// procfs reads a proc(5). Its methods may be called from several goroutines, but for
// list.
type procfs struct {
	fd    int
	names []byte // what getdents64(2) fills
}

// openProc opens /proc, which must show our own process numbers.
func openProc() (*procfs, error) {
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return nil, fmt.Errorf("no process can be found without /proc: %w", err)
	}
	if self != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("/proc shows another pid namespace than ours: mount one of our own there")
	}
	fd, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	// Small: between a name and the first look at its process there is to be little time.
	return &procfs{fd: fd, names: make([]byte, 8<<10)}, nil
}

func (p *procfs) close() { _ = unix.Close(p.fd) }

// list calls each with all process numbers, some at a time, in ascending order.
func (p *procfs) list(each func(pids []int32)) error {
	if _, err := unix.Seek(p.fd, 0, unix.SEEK_SET); err != nil {
		return fmt.Errorf("rewind /proc: %w", err)
	}
	var pids []int32
	for {
		n, err := unix.Getdents(p.fd, p.names)
		if err != nil {
			return fmt.Errorf("read /proc: %w", err)
		}
		if n == 0 {
			return nil
		}
		pids = pids[:0]
		for rest := p.names[:n]; len(rest) > 19; {
			size := int(rest[16]) | int(rest[17])<<8 // struct linux_dirent64, getdents(2)
			if size < 20 || size > len(rest) {
				break
			}
			if pid, ok := number(rest[19:size], 31); ok && pid > 0 {
				pids = append(pids, int32(pid))
			}
			rest = rest[size:]
		}
		if len(pids) > 0 {
			each(pids)
		}
	}
}

// openStat opens the stat of a process. The descriptor is for that process alone:
// after its end reading fails, whoever has its number.
func (p *procfs) openStat(pid int32) (int, error) {
	var name [16]byte
	return unix.Openat(p.fd, string(append(strconv.AppendInt(name[:0], int64(pid), 10), "/stat"...)),
		unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// readStat reads from a descriptor of openStat.
func readStat(fd int) (stat, error) {
	var text [1024]byte // the fields in question are within
	for {
		n, err := unix.Pread(fd, text[:], 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return stat{}, err
		case n == 0:
			return stat{}, unix.ESRCH
		}
		return parseStat(text[:n])
	}
}

// stat reads the stat of a process once.
func (p *procfs) stat(pid int32) (stat, error) {
	fd, err := p.openStat(pid)
	if err != nil {
		return stat{}, err
	}
	defer unix.Close(fd)
	return readStat(fd)
}

// text reads a small file of a process, at most 4 KiB.
func (p *procfs) text(pid int32, name string) ([]byte, error) {
	fd, err := unix.Openat(p.fd, strconv.Itoa(int(pid))+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4<<10)
	n, err := unix.Read(fd, buf)
	return buf[:max(n, 0)], err
}

// whole reads a file of the system, of so many bytes at most.
func (p *procfs) whole(name string, most int64) ([]byte, error) {
	fd, err := unix.Openat(p.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// name is what the process calls itself (proc_pid_comm(5)).
func (p *procfs) name(pid int32) string {
	text, err := p.text(pid, "comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(text, []byte("\n")))
}

// tracer is the number of the process that traces this one, 0 if none does.
func (p *procfs) tracer(pid int32) int32 {
	thread := p.status(pid, "TracerPid")
	if thread == 0 {
		return 0
	}
	if process := p.status(thread, "Tgid"); process != 0 {
		return process
	}
	return thread
}

// status reads a number from proc_pid_status(5); 0 if it is not there.
func (p *procfs) status(pid int32, field string) int32 {
	text, err := p.text(pid, "status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("\n"+field+":\t"))
	n, _ := number(rest, 31)
	return int32(n)
}

// threads calls each with the stat of every thread of a process until it returns
// false. One that ends meanwhile may be left out.
func (p *procfs) threads(pid int32, each func(*stat) bool) error {
	dir, err := os.OpenFile("/proc/"+strconv.Itoa(int(pid))+"/task", os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		fd, err := unix.Openat(int(dir.Fd()), name+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		s, err := readStat(fd)
		_ = unix.Close(fd)
		if err == nil && !each(&s) {
			return nil
		}
	}
	return nil
}

// lastNumber is the process or thread number that was given out last in our pid
// namespace (proc_loadavg(5)).
func (p *procfs) lastNumber() (int32, error) {
	fd, err := unix.Openat(p.fd, "loadavg", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open /proc/loadavg: %w", err)
	}
	defer unix.Close(fd)
	var buf [128]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, fmt.Errorf("read /proc/loadavg: %w", err)
	}
	text := bytes.TrimSpace(buf[:n])
	last, ok := number(text[bytes.LastIndexByte(text, ' ')+1:], 31)
	if !ok {
		return 0, fmt.Errorf("/proc/loadavg has no number of the last process: %q", text)
	}
	return int32(last), nil
}
