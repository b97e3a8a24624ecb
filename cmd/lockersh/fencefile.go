package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// A restored job has the environment that it was checkpointed with, and LOCKER_FENCE in
// there is that of an earlier hold. The fence of now is in a file, whose name is the same on
// every host and is in the environment too. It is not on a disk that hosts share: an
// instance that has outlived its hold must not find the fence of the next one there.
const (
	fenceFileVariable = "LOCKERSH_FENCE_FILE"
	fenceFileDir      = "/run/lockersh"
)

func fenceFile(name string) string { return filepath.Join(fenceFileDir, name+".fence") }

// tellFence writes the file. It always has the same size, because CRIU restores no
// process that had it open for reading if that has changed.
func tellFence(name string, fence uint64) error {
	if err := os.MkdirAll(fenceFileDir, 0o755); err != nil {
		return fmt.Errorf("tell the fence: %w", err)
	}
	if err := replaceFile(fenceFile(name), fmt.Appendf(nil, "%20d\n", fence), 0o644); err != nil {
		return fmt.Errorf("tell the fence: %w", err)
	}
	return nil
}

func forgetFence(name string) { _ = os.Remove(fenceFile(name)) }
