package main

import (
	"cmp"
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

	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
)

// series is what there is of one job in a directory that all hosts share:
//
//	NAME.FENCE.NUMBER.ckpt     a context, the newest of which has the highest fence, and
//	                           of those the highest number
//	NAME.FENCE.NUMBER.damaged  one that could not be read, for people to look at
//	NAME.done                  how the job has ended, if it did so by itself
//
// Whoever has been granted the lock takes the contexts over before anything else, by
// giving them names with the fence of its own. What another one writes afterwards, whose
// hold has ended and who has not noticed, has a lower fence and is not looked at.
type series struct {
	dir, name string
	fence     uint64 // of our hold
	number    uint64 // of the last context
}

// contextID is what tells the contexts of a job apart.
type contextID struct{ fence, number uint64 }

const (
	contextEnd = ".ckpt"
	damagedEnd = ".damaged"
	doneEnd    = ".done"

	// keptContexts is how many are kept: if the newest turns out to be damaged, there is
	// the one before.
	keptContexts = 2
	// maxSeriesName bounds the names of files (NAME_MAX is 255, limits.h(0p)).
	maxSeriesName = 180
)

// seriesName is a lock's name as part of a file's name: letters, digits, - and _ as they
// stand, all else as %XX.
func seriesName(lock string) (string, error) {
	name := fencefile.Escape(lock)
	if len(name) > maxSeriesName {
		return "", fmt.Errorf("the lock's name is too long to name contexts by: %d bytes, and %d is the most", len(name), maxSeriesName)
	}
	return name, nil
}

func (s *series) path(id contextID, end string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%s.%d.%d%s", s.name, id.fence, id.number, end))
}

// list finds the contexts, newest first, or with damagedEnd the damaged ones.
func (s *series) list(end string) (ids []contextID, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("look for contexts: %w", err)
	}
	for _, e := range entries {
		if id, ok := s.parse(e.Name(), end); ok {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b contextID) int {
		return -cmp.Or(cmp.Compare(a.fence, b.fence), cmp.Compare(a.number, b.number))
	})
	return ids, nil
}

// parse is for a name that [series.path] has made.
func (s *series) parse(file, end string) (id contextID, ok bool) {
	rest, ours := strings.CutPrefix(file, s.name+".")
	middle, whole := strings.CutSuffix(rest, end)
	fence, number, two := strings.Cut(middle, ".")
	if !ours || !whole || !two {
		return id, false
	}
	var bad, worse error
	id.fence, bad = strconv.ParseUint(fence, 10, 64)
	id.number, worse = strconv.ParseUint(number, 10, 64)
	return id, bad == nil && worse == nil && filepath.Base(s.path(id, end)) == file
}

// takeOver makes the contexts ours, and returns them, newest first.
func (s *series) takeOver(done ending) (ours []contextID, err error) {
	all, err := s.list(contextEnd)
	if err != nil {
		return nil, err
	}
	if len(all) > 0 && all[0].fence >= s.fence {
		return nil, fmt.Errorf("%s is of a later hold than ours, whose fence is %d: is it of another cluster? Remove it, or use another directory",
			s.path(all[0], contextEnd), s.fence)
	}
	kept := all[:min(len(all), keptContexts)]
	if i := slices.IndexFunc(kept, func(id contextID) bool { return id.fence <= done.Fence }); i >= 0 {
		kept = kept[:i] // the job that they are of has ended
	}
	s.number = uint64(len(kept))
	for i, id := range kept { // the newest first: it is the newest at any moment
		to := contextID{s.fence, s.number - uint64(i)}
		if err := os.Rename(s.path(id, contextEnd), s.path(to, contextEnd)); err != nil {
			return nil, fmt.Errorf("take a context over: %w", err)
		}
		ours = append(ours, to)
	}
	for _, id := range all[len(kept):] {
		_ = os.Remove(s.path(id, contextEnd))
	}
	return ours, syncDir(s.dir)
}

// next is the file for the next context.
func (s *series) next() string {
	s.number++
	return s.path(contextID{s.fence, s.number}, contextEnd)
}

// setAside keeps a damaged context from being used again.
func (s *series) setAside(id contextID) (name string) {
	name = s.path(id, damagedEnd)
	if os.Rename(s.path(id, contextEnd), name) != nil {
		return s.path(id, contextEnd)
	}
	return name
}

// prune removes what is older than the contexts that are kept.
func (s *series) prune() {
	all, _ := s.list(contextEnd) // what is not removed now is next time
	for _, id := range all[min(len(all), keptContexts):] {
		_ = os.Remove(s.path(id, contextEnd))
	}
}

// ending is how a job ended by itself.
type ending struct {
	Fence  uint64    `json:"fence"` // of the hold that it ended in
	Status int       `json:"status"`
	Host   string    `json:"host"`
	Time   time.Time `json:"time"`
}

// maxStatus is the highest exit status (exit(3)).
const maxStatus = 255

// maxEnding bounds what is read of an ending, in bytes.
const maxEnding = 4096

// lastEnding is that of the job's last run; zero if there was none.
func (s *series) lastEnding() (e ending, err error) {
	path := filepath.Join(s.dir, s.name+doneEnd)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return e, nil
	}
	var text []byte
	if err == nil {
		defer f.Close()
		text, err = io.ReadAll(io.LimitReader(f, maxEnding+1))
	}
	if err == nil && len(text) > maxEnding {
		err = errors.New("it is too long")
	}
	if err == nil {
		e, err = parseEnding(text)
	}
	if err != nil {
		return e, fmt.Errorf("read how the job has ended, %s: %w: if that is no matter, remove it", path, err)
	}
	return e, nil
}

func parseEnding(text []byte) (e ending, err error) {
	if err := json.Unmarshal(text, &e); err != nil {
		return ending{}, err
	}
	if e.Fence == 0 || e.Status < 0 || e.Status > maxStatus {
		return ending{}, fmt.Errorf("no run has fence %d and status %d", e.Fence, e.Status)
	}
	return e, nil
}

// finish says that the job has ended, and removes its contexts.
func (s *series) finish(status int) error {
	all, err := s.list(contextEnd)
	if err != nil {
		return err
	}
	if len(all) > 0 && all[0].fence > s.fence {
		return errors.New("another host goes on with the job, so how it ended here does not count")
	}
	host, _ := os.Hostname()
	text, err := json.Marshal(ending{Fence: s.fence, Status: status, Host: host, Time: time.Now().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(s.dir, s.name+doneEnd), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("say that the job has ended: %w", err)
	}
	for _, end := range []string{contextEnd, damagedEnd} {
		all, err := s.list(end)
		if err != nil {
			return err
		}
		for _, id := range all {
			if id.fence > s.fence {
				continue
			}
			if err := os.Remove(s.path(id, end)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove the job's contexts: %w", err)
			}
		}
	}
	return nil
}

// replaceFile writes a file that is whole at any moment, and on the disk afterwards.
func replaceFile(path string, text []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".lockersh-*")
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
