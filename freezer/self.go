package freezer

import (
	"context"

	"github.com/lockerd/lockerd/freezer/checkpoint/self"
)

// Checkpoint has the job that this program is of saved in a file, and returns: restored is
// true in what cr_restart(1) has started from the file. It takes somebody who does it, as
// lockersh --checkpointable (see package self, which tells restarts apart and gives up
// waiting).
func Checkpoint(path string) (restored bool, err error) {
	return self.Checkpoint(context.Background(), path, self.Stay)
}

// CheckpointAndExit is Checkpoint, and kills the job when the file is safe. So it returns
// with an error, or restored.
func CheckpointAndExit(path string) (restored bool, err error) {
	return self.Checkpoint(context.Background(), path, self.Exit)
}
