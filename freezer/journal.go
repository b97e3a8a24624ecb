package freezer

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A journal says how to undo a freeze. Its guard writes it to a directory in memory,
// each line before what it is about, and keeps a lock on it (flock(2)) for as long as
// it lives; so whoever gets the lock has to do the guard's work. The first line is the
// record, in JSON. The others are
//
//	pid NUMBER START        SIGCONT to this process
//	cgroup INODE "PATH"     0 to its cgroup.freeze
//	fs DEVICE "TYPE SOURCE" "PATH"  FITHAW to the file system
//	since NANOS             the freeze has begun, at this time since 1970
//	until NANOS             the deadline has become this time on CLOCK_BOOTTIME, 0 for never
//
// and undone from the last to the first. A last line without its end counts for
// nothing: what it is about has not been done.
type journal struct {
	file *os.File
	path string
	rec  record
}

// record is the first line of a journal, and what was read behind it.
type record struct {
	Version   int           `json:"version"`
	ID        string        `json:"id"`
	Boot      string        `json:"boot"`  // random(4): of the kernel
	PIDNS     uint64        `json:"pidns"` // inode of the pid namespace that numbers are of
	Guard     process       `json:"guard"`
	Requester process       `json:"requester"`
	Detach    bool          `json:"detach"`
	Lease     time.Duration `json:"lease,omitempty"` // as in the Order
	Targets   []Target      `json:"targets"`
	Since     time.Time     `json:"since,omitzero"` // zero before the freeze begins
	Until     time.Duration `json:"until"`          // on CLOCK_BOOTTIME; 0 is never

	entries []entry
	unseen  bool // the guard is in a pid namespace that cannot be seen from ours
}

// process is a process of this boot and pid namespace.
type process struct {
	pid   int32
	start uint64
}

func (p process) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d.%d", p.pid, p.start), nil }

func (p *process) UnmarshalText(text []byte) error {
	pid, start, _ := bytes.Cut(text, []byte("."))
	n, err1 := strconv.ParseInt(string(pid), 10, 32)
	s, err2 := strconv.ParseUint(string(start), 10, 64)
	if err1 != nil || err2 != nil || n < 1 {
		return fmt.Errorf("%q names no process", text)
	}
	p.pid, p.start = int32(n), s
	return nil
}

// entry is a line of a journal.
type entry struct {
	kind  string
	pid   int32
	start uint64
	inode uint64
	path  string
	since time.Time
	until time.Duration

	source string // of a file system: its type and what it is on
}

const (
	entryPID    = "pid"
	entryCgroup = "cgroup"
	entryFS     = "fs"
	entrySince  = "since"
	entryUntil  = "until"

	journalVersion = 1
	journalEnd     = ".journal"
	socketEnd      = ".sock"

	maxJournal     = 64 << 20 // a million processes
	maxJournalLine = 256 << 10
)

func (e entry) append(b []byte) []byte {
	b = append(b, e.kind...)
	b = append(b, ' ')
	switch e.kind {
	case entryPID:
		b = strconv.AppendInt(b, int64(e.pid), 10)
		b = append(b, ' ')
		b = strconv.AppendUint(b, e.start, 10)
	case entryCgroup:
		b = strconv.AppendUint(b, e.inode, 10)
		b = append(b, ' ')
		b = strconv.AppendQuote(b, e.path)
	case entryFS:
		b = strconv.AppendUint(b, e.inode, 10)
		b = append(b, ' ')
		b = strconv.AppendQuote(b, e.source)
		b = append(b, ' ')
		b = strconv.AppendQuote(b, e.path)
	case entrySince:
		b = strconv.AppendInt(b, e.since.UnixNano(), 10)
	case entryUntil:
		b = strconv.AppendInt(b, int64(e.until), 10)
	}
	return append(b, '\n')
}

var errJournal = errors.New("damaged journal")

func parseEntry(line string) (e entry, err error) {
	word, rest, _ := strings.Cut(line, " ")
	e.kind = word
	switch word {
	case entryPID:
		var p process
		pid, start, _ := strings.Cut(rest, " ")
		err = p.UnmarshalText([]byte(pid + "." + start))
		e.pid, e.start = p.pid, p.start
	case entryCgroup:
		ino, path, _ := strings.Cut(rest, " ")
		if e.inode, err = strconv.ParseUint(ino, 10, 64); err == nil {
			e.path, err = strconv.Unquote(path)
		}
	case entryFS:
		var source string
		dev, rest, _ := strings.Cut(rest, " ")
		if e.inode, err = strconv.ParseUint(dev, 10, 64); err != nil {
			break
		}
		if source, err = strconv.QuotedPrefix(rest); err != nil {
			break
		}
		if e.source, err = strconv.Unquote(source); err == nil {
			e.path, err = strconv.Unquote(strings.TrimPrefix(rest[len(source):], " "))
		}
	case entrySince:
		var n int64
		n, err = strconv.ParseInt(rest, 10, 64)
		e.since = time.Unix(0, n)
	case entryUntil:
		var n int64
		n, err = strconv.ParseInt(rest, 10, 64)
		e.until = time.Duration(n)
	default:
		err = errors.New("of another version")
	}
	if err != nil {
		return e, fmt.Errorf("%w: line %.80q: %w", errJournal, line, err)
	}
	return e, nil
}

// readRecord reads a journal. With an error that is errJournal it returns what it has
// understood.
func readRecord(r io.Reader) (rec record, err error) {
	in := bufio.NewReaderSize(io.LimitReader(r, maxJournal), maxJournalLine)
	first := true
	for {
		line, rerr := in.ReadSlice('\n')
		if rerr == io.EOF {
			if first {
				return rec, fmt.Errorf("%w: it is empty", errJournal)
			}
			return rec, err
		}
		if rerr != nil {
			return rec, errors.Join(err, fmt.Errorf("%w: %w", errJournal, rerr))
		}
		text := line[:len(line)-1]
		if first {
			first = false
			if jerr := json.Unmarshal(text, &rec); jerr != nil {
				return rec, fmt.Errorf("%w: %w", errJournal, jerr)
			}
			switch {
			case rec.Version != journalVersion:
				return rec, fmt.Errorf("%w: it is of version %d, not %d", errJournal, rec.Version, journalVersion)
			case rec.Guard.pid < 1 || rec.Requester.pid < 1:
				return rec, fmt.Errorf("%w: it names no guard or no requester", errJournal)
			}
			continue
		}
		e, perr := parseEntry(string(text))
		switch {
		case perr != nil && err == nil:
			err = perr
		case perr != nil:
		case e.kind == entrySince:
			rec.Since = e.since
		case e.kind == entryUntil:
			rec.Until = e.until
		default:
			rec.entries = append(rec.entries, e)
		}
	}
}

// marshalRecord makes the first line.
func marshalRecord(r *record) ([]byte, error) {
	text, err := json.Marshal(r)
	return append(text, '\n'), err
}

// held is the error for those who want the same.
func (r *record) held() error {
	text := "for as long as it likes"
	if r.Until > 0 {
		text = "until " + wall(r.Until).Format(time.TimeOnly)
	}
	return fmt.Errorf("%w: process %d, %s", ErrHeld, r.Guard.pid, text)
}

// createJournal starts the journal of a guard.
func createJournal(dir string, rec record) (*journal, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	rec.Version, rec.ID = journalVersion, hex.EncodeToString(id[:])
	j := &journal{path: filepath.Join(dir, rec.ID+journalEnd), rec: rec}
	first, err := marshalRecord(&rec)
	if err != nil {
		return nil, err
	}
	if j.file, err = createLocked(j.path, first); err != nil {
		return nil, fmt.Errorf("start a journal: %w", err)
	}
	return j, nil
}

// createLocked makes a file that we have the lock of (flock(2)). It has no name before
// that and before its text is in it: whoever finds it unlocked finds it without owner.
func createLocked(path string, text []byte) (*os.File, error) {
	f, err := os.OpenFile(filepath.Dir(path), os.O_RDWR|os.O_APPEND|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}) // see guarded
	}
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		link := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		err = unix.Linkat(unix.AT_FDCWD, link, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (j *journal) note(entries ...entry) error {
	var text []byte
	for _, e := range entries {
		text = e.append(text)
	}
	if _, err := j.file.Write(text); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// remove is for when everything is thawed.
func (j *journal) remove() error {
	err := os.Remove(j.path)
	_ = j.file.Close()
	return err
}

// openDir makes sure that a directory for journals exists, is ours alone, and is in
// memory: where a frozen file system could be written to, nothing would ever be
// thawed.
func openDir(dir string) (_ string, err error) {
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%w: the directory %q for journals is not absolute", ErrOrder, dir)
	}
	switch merr := os.Mkdir(dir, 0o700); {
	case merr == nil:
		defer func() {
			if err != nil {
				_ = os.Remove(dir)
			}
		}()
	case !errors.Is(merr, os.ErrExist):
		return "", fmt.Errorf("make the directory for journals: %w", merr)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Lstat(dir, &st), unix.Statfs(dir, &fs)); err != nil {
		return "", fmt.Errorf("look at %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0:
		return "", fmt.Errorf("%s has to be a directory that nobody else may use (mode 0700)", dir)
	case fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC:
		return "", fmt.Errorf("%s is not in memory (tmpfs): name another directory in %s", dir, dirVariable)
	}
	return dir, nil
}

// dirVariable names the directory for journals in the environment.
const dirVariable = "FREEZER_RUN"

// Dir is the directory for journals: that of the environment's FREEZER_RUN, or
// "freezer" in the first of /run and /dev/shm that is in memory.
func Dir() string {
	if dir := os.Getenv(dirVariable); dir != "" {
		return dir
	}
	places := []string{"/run", "/dev/shm"}
	for _, place := range places {
		var fs unix.Statfs_t
		if unix.Statfs(place, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
			return filepath.Join(place, "freezer")
		}
	}
	return filepath.Join(places[0], "freezer")
}

// records reads the journals of a directory whose guards live, in whatever pid namespace:
// what they have frozen beside processes is everybody's.
func records(dir string) ([]record, error) {
	all, err := filepath.Glob(filepath.Join(dir, "*"+journalEnd))
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	var found []record
	for _, path := range all {
		f, err := os.Open(path)
		if err != nil {
			continue // it has been removed
		}
		if !orphaned(f) {
			rec, err := readRecord(f)
			if err == nil && rec.Boot == bootID() {
				rec.locate(f)
				found = append(found, rec)
			}
		}
		_ = f.Close()
	}
	return found, nil
}

// orphaned says whether the guard of a journal has gone. If so, f has the lock now.
func orphaned(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
