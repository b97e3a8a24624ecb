// Package freezing is what freezethaw, freezefs and thawfs have in common: exit statuses,
// and how they read the names of file systems.
package freezing

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
)

// Exit statuses of the programs beside those of getopt, after sysexits(3) where it has one.
const (
	ExitFrozen      = 1 // an answer of freezefs -q
	ExitNotFrozen   = 1 // of thawfs: there was nothing to do
	ExitUnknown     = 65
	ExitNoTarget    = 66
	ExitUnsupported = 69
	ExitNoMemory    = 71
	ExitTempFail    = 75
	ExitThawed      = 76 // of freezethaw: too early
	ExitNoRight     = 77
)

var (
	// ErrLook is for those who may not see what is frozen.
	ErrLook = errors.New("only root may see what is frozen")
	// ErrThaw is for those who may not thaw.
	ErrThaw = errors.New("only root may thaw")
)

// Statuses are those of the errors of package freezer.
var Statuses = []getopt.Status{
	{Of: freezer.ErrPermission, Code: ExitNoRight},
	{Of: freezer.ErrProtected, Code: ExitNoRight},
	{Of: ErrLook, Code: ExitNoRight},
	{Of: ErrThaw, Code: ExitNoRight},
	{Of: freezer.ErrNotFrozen, Code: ExitNotFrozen},
	{Of: freezer.ErrNotMounted, Code: ExitNoTarget},
	{Of: freezer.ErrNotSupported, Code: ExitUnsupported},
	{Of: freezer.ErrUnknown, Code: ExitUnknown},
	{Of: freezer.ErrNoMemory, Code: ExitNoMemory},
	{Of: freezer.ErrOption, Code: getopt.ExitUsage},
	{Of: freezer.ErrOrder, Code: getopt.ExitUsage},
	{Of: freezer.ErrSelf, Code: getopt.ExitUsage},
	{Of: freezer.ErrNoTarget, Code: ExitNoTarget},
	{Of: freezer.ErrAlreadyFrozen, Code: ExitTempFail},
	{Of: freezer.ErrUnstoppable, Code: ExitTempFail},
	{Of: freezer.ErrRestless, Code: ExitTempFail},
	{Of: freezer.ErrHeld, Code: ExitTempFail},
	{Of: freezer.ErrDeadline, Code: ExitTempFail},
	{Of: freezer.ErrThawed, Code: ExitTempFail},
	{Of: freezer.ErrGuardLost, Code: ExitTempFail},
}

// Signals ends the context with the signals by which a user breaks something off.
func Signals() (ctx context.Context, stop context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
}

// Mounts are the whole paths of the file systems that a command line names: one at least.
func Mounts(words []string) (paths []string, err error) {
	if len(words) == 0 {
		return nil, errors.New("no file system specified")
	}
	for _, w := range words {
		path, err := Path(w)
		if err != nil {
			return nil, fmt.Errorf("the name of a file system: %w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// Path is the whole path of a name. No name is not the current directory.
func Path(name string) (string, error) {
	if name == "" {
		return "", errors.New("it is empty")
	}
	return filepath.Abs(name)
}
