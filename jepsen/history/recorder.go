package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Recorder stamps operations and keeps them. Its methods may be called from
// several goroutines.
type Recorder struct {
	start time.Time

	mu  sync.Mutex
	ops []Op
}

// NewRecorder starts the clock of a history.
func NewRecorder() *Recorder { return &Recorder{start: time.Now()} }

// Now is the time on the clock of the history.
func (r *Recorder) Now() time.Duration { return time.Since(r.start) }

// Add stamps an operation and keeps it.
func (r *Recorder) Add(op Op) Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Under the lock, so that the order of the list is that of the stamps.
	op.Time, op.Index = r.Now(), len(r.ops)
	r.ops = append(r.ops, op)
	return op
}

// Ops is what has been recorded so far.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Op(nil), r.ops...)
}

// Len is how much has been recorded so far.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

// maxLine bounds a line of a stored history.
const maxLine = 1 << 20

// WriteLines writes values as JSON, one a line.
func WriteLines[T any](path string, values []T) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("store lines: %w", err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, v := range values {
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("store %s: %w", path, err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return f.Close()
}

// ReadLines reads what WriteLines has written.
func ReadLines[T any](r io.Reader) ([]T, error) {
	var all []T
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for n := 1; sc.Scan(); n++ {
		if len(sc.Bytes()) == 0 {
			continue
		}
		var v T
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		all = append(all, v)
	}
	return all, sc.Err()
}

// ReadFile is ReadLines of a file.
func ReadFile[T any](path string) ([]T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := ReadLines[T](f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}
