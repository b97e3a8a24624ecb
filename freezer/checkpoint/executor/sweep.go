package executor

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// A checkpoint, and a restart, has a copy of the job's memory in a directory beside the file
// until it is done, and so for good if all that has to do with it is killed. So there are
// records of the directories that are worked in, each in a file named by the order.

// note records that an order works in a directory, until forget is called.
func (x *Executor) note(order uint64, dir string) (forget func(), err error) {
	if x.records == "" {
		return func() {}, nil
	}
	path := filepath.Join(x.records, strconv.FormatUint(order, 10))
	if err = os.MkdirAll(x.records, 0o700); err == nil {
		err = os.WriteFile(path, []byte(dir), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("note what is begun: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil
}

// noted are the records of earlier executors.
func noted(records string) (paths []string) {
	entries, _ := os.ReadDir(records) // there may be none
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			paths = append(paths, filepath.Join(records, e.Name()))
		}
	}
	return paths
}

// sweep removes what earlier executors have left, and nobody uses.
func (x *Executor) sweep() {
	for _, path := range x.left {
		if dir, err := readRecord(path); err == nil && filepath.IsAbs(dir) {
			checkpoint.Sweep(dir)
		}
		_ = os.Remove(path)
	}
}

// readRecord reads the name of a directory, of so many bytes as one can have.
func readRecord(path string) (dir string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, unix.PathMax))
	return string(text), err
}
