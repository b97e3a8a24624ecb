package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/job"
)

// keeperName is what the process is called that keeps the lock for a command which
// has taken lockersh's place.
const keeperName = "lockersh-keeper"

// maxCharge bounds what a keeper reads.
const maxCharge = 8 << 20

// charge is all that a keeper has to know, in JSON. Names may be any bytes, so they
// are encoded as such.
type charge struct {
	PID     int
	ID      string
	User    []byte
	Hosts   [][]byte
	Port    []byte
	Family  client.Family
	Locks   [][]byte
	Fence   uint64
	Request [16]byte
	Since   time.Duration
	Limit   time.Duration

	LostSignal syscall.Signal
	Grace      time.Duration
	WaitAll    bool
}

// replace takes the lock for this process and executes the command in it, as
// IPC::Locker does. A keeper beside it hears of a loss and releases the lock.
func replace(s *settings) int {
	signals := job.Notify()
	id := newID()
	// Before there is anything to keep, so that what cannot start is found out.
	keeper, err := job.Detach(keeperName)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return exitInternal
	}
	l, code := take(s, signals)
	if l == nil {
		return code
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		release(l)
		return code
	}
	if err := writeFence(s.fenceFD, l.Fence()); err != nil {
		return fail(exitInternal, fmt.Errorf("cannot write the fence to descriptor %d: %w", s.fenceFD, err))
	}
	anchor := takeAnchor(l)
	if err := entrust(keeper, s, l, id, anchor); err != nil {
		return fail(exitInternal, err)
	}
	job.Release(signals)
	select {
	case sig := <-signals: // it came since the grant
		release(l)
		return interrupted(sig.(syscall.Signal))
	default:
	}
	err = job.Replace(s.job.Argv, environment(l, id, nil), anchor)
	return fail(job.StartCode(err), err)
}

// take takes the lock for a process that exists, unless a signal comes.
func take(s *settings, signals <-chan os.Signal) (*client.Locker, int) {
	l, err := client.New(s.locker)
	if err != nil {
		return nil, misused(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- l.Lock(ctx) }()
	select {
	case err = <-answer:
	case sig := <-signals:
		cancel()
		if <-answer == nil {
			release(l)
		}
		return nil, interrupted(sig.(syscall.Signal))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return nil, lockCode(err)
	}
	return l, 0
}

// entrust tells the keeper what to keep, and gives it the anchor to hold: the lock
// then ends by the keeper's doing, or with the keeper and the command both. It returns
// when the keeper watches: a command may end before a keeper that has yet to find a
// processor, and leave others for whom the lock is to be kept. From then
// on it is told of the end by the end of this process alone.
func entrust(keeper *os.File, s *settings, l *client.Locker, id string, anchor *os.File) error {
	g := l.Grant()
	c := charge{
		PID: os.Getpid(), ID: id, User: []byte(l.User()),
		Hosts: bytesOf(s.locker.Hosts), Port: []byte(s.locker.Port), Family: s.locker.Family,
		Locks: bytesOf(g.Locks), Fence: g.Fence, Request: g.ID, Since: g.Since, Limit: s.locker.HoldLimit,
		LostSignal: s.job.LostSignal, Grace: s.job.Grace, WaitAll: s.job.WaitAll,
	}
	text, err := json.Marshal(c)
	if err == nil {
		err = job.Send(keeper, text, anchor)
	}
	if err != nil {
		return fmt.Errorf("entrust the lock to a keeper: %w", err)
	}
	return nil
}

// keep is the life of the keeper: it waits for the end of the command's process and
// releases the lock, or for the end of the lock and ends the command. If it is
// killed itself, the lock ends with the process all the same.
func keep(socket string) int {
	fd, err := strconv.Atoi(socket)
	if err != nil {
		return exitUsage
	}
	unix.CloseOnExec(fd)
	text, anchor, err := job.Receive(fd, maxCharge)
	if anchor != nil {
		defer anchor.Close()
	}
	var c charge
	if err != nil || json.Unmarshal(text, &c) != nil {
		return exitInternal // there is no lock to keep
	}
	_ = job.Notify() // the terminal's signals are not for us
	command, err := job.Watch(c.PID, c.ID)
	if err != nil {
		return exitInternal // it has gone, and the lock with it
	}
	job.Acknowledge(fd)
	o := client.Options{
		PID: c.PID, User: string(c.User), Hosts: stringsOf(c.Hosts), Port: string(c.Port), Family: c.Family,
		Locks: stringsOf(c.Locks), All: len(c.Locks) > 1, HoldLimit: c.Limit,
		Autounlock: true, KeepOnClose: true,
	}
	l, err := client.Adopt(o, client.Grant{Locks: o.Locks, Fence: c.Fence, ID: c.Request, Since: c.Since})
	if err != nil {
		return exitInternal
	}
	ended := command.Ended()
	if c.WaitAll {
		ended = command.AllEnded()
	}
	select {
	case <-ended:
		ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
		defer cancel()
		if err := l.Unlock(ctx); err != nil && !errors.Is(err, client.ErrLost) && !errors.Is(err, client.ErrUncertain) {
			return exitUnavailable
		}
	case <-l.Lost():
		if command.End(c.LostSignal, c.Grace) > 0 {
			return exitLost
		}
	}
	return 0
}

func bytesOf(texts []string) [][]byte {
	all := make([][]byte, len(texts))
	for i, t := range texts {
		all[i] = []byte(t)
	}
	return all
}

func stringsOf(texts [][]byte) []string {
	all := make([]string, len(texts))
	for i, t := range texts {
		all[i] = string(t)
	}
	return all
}
