package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// CRIUVariable names the program to use, and no other.
const CRIUVariable = "LOCKERD_CRIU"

// SystemPrefix is where scripts/install-criu puts CRIU for all users.
const SystemPrefix = "/usr/local/lib/lockerd/criu"

// The oldest CRIU that can dump a socket on kernels since 6.17.
const (
	leastMajor = 4
	leastMinor = 2
)

// CRIU is a program that was found.
type CRIU struct {
	Path    string
	Version string
}

// Find looks for CRIU: in the environment, in the prefixes of scripts/install-criu, in
// PATH. One that the environment names and that is no good is an error, not a reason
// to take another.
func Find(ctx context.Context) (*CRIU, error) {
	if path := os.Getenv(CRIUVariable); path != "" {
		c, err := look(ctx, path)
		if ctx.Err() != nil {
			return nil, classed(context.Cause(ctx), "find CRIU")
		}
		if err != nil {
			return nil, noCRIU(fmt.Errorf("%s=%s: %w", CRIUVariable, path, err))
		}
		return c, nil
	}
	places := []string{filepath.Join(SystemPrefix, "bin/criu")}
	if cache, err := os.UserCacheDir(); err == nil {
		places = append(places, filepath.Join(cache, "lockerd/criu/bin/criu"))
	}
	if path, err := exec.LookPath("criu"); err == nil {
		places = append(places, path)
	}
	var last error
	for _, path := range places {
		c, err := look(ctx, path)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			last = fmt.Errorf("%s: %w", path, err)
		}
	}
	if ctx.Err() != nil {
		return nil, classed(context.Cause(ctx), "find CRIU")
	}
	if last == nil {
		last = fmt.Errorf("there is none in %s, nor in PATH", SystemPrefix)
	}
	return nil, noCRIU(last)
}

func noCRIU(err error) error {
	return fail(Env, syscall.ENOENT, "%w: %w; scripts/install-criu gets one", ErrNoCRIU, err)
}

// lookTime bounds a question to the program.
const lookTime = 20 * time.Second

// look asks a program for its version.
func look(ctx context.Context, path string) (*CRIU, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask for its version: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	version := strings.TrimSpace(strings.TrimPrefix(first, "Version:"))
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return nil, fmt.Errorf("it calls itself %.40q", first)
	}
	if major < leastMajor || major == leastMajor && minor < leastMinor {
		return nil, fmt.Errorf("it is version %s, and %d.%d is the first that will do", version, leastMajor, leastMinor)
	}
	return &CRIU{Path: path, Version: version}, nil
}

// Supports asks whether the kernel has what CRIU calls a feature, as mem_dirty_track.
func (c *CRIU) Supports(ctx context.Context, feature string) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return exec.CommandContext(ctx, c.Path, "check", "--feature", feature).Run() == nil
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return fail(Env, syscall.EPERM, "%w", ErrNoRight)
	}
	return nil
}
