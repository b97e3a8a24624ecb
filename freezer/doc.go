// Package freezer freezes processes of this host for a while, and thaws them again
// whatever happens.
//
//	err := freezer.FreezeThaw(ctx, freezer.Order{Targets: []freezer.Target{freezer.Machine()}},
//		func() error { return os.Rename("library.new", "library") })
//
// The program calls [AtGuard] first in main.
//
// # Two ways
//
// A cgroup of version 2 is frozen by the kernel: at once, children to come included,
// and nobody notices anything. All other targets are processes, and get SIGSTOP and
// later SIGCONT: parents are stopped before their children and continued after them,
// so that no parent sees a child stop (waitpid(2) with WUNTRACED). A parent that is
// not frozen itself does, and whoever waits with WCONTINUED, or catches SIGCONT,
// notices the thaw. The process table is read again until nothing is found that
// runs, and then everything is looked at once more.
//
// Never stopped are init, threads of the kernel, guards, the requester and, unless the
// order says otherwise, the processes that it descends from. What was stopped before
// stays stopped after the thaw; what waits in uninterruptible sleep cannot be
// stopped, and is an error or, in a partial freeze, named in the [Report].
//
// # The guard
//
// Who freezes could be killed before it thaws. So a process of its own does both
// ([Start]): this program once more, locked in memory, in its own session. It arms its
// timer and opens all that it needs before the first signal. It thaws when the requester
// says so ([Guard.Thaw]), when the time is up, and when the requester's socket closes,
// which it does with the last of the requester. A detached freeze outlives the
// requester, up to its deadline; [List] finds it, and [Adopt] gets hold of it.
//
// A guard keeps a journal in memory (tmpfs), where each line is written before what it
// says is done. If the guard is killed, the requester thaws by the journal; if both
// are, the next who starts a guard does, or [Recover].
//
// # Invariants
//
// Whatever was signalled is signalled again by the thaw, and nothing else is. A process
// is signalled by a pidfd that was opened before its start time was read, so never for
// another one of its number; the same goes for recovery. Nothing is done that the
// journal does not know how to undo. After an error nothing is frozen.
//
// No two guards hold the same: the second is refused ([ErrHeld]).
//
// Process numbers are those of our pid namespace, in which /proc has to be. Freezing
// takes root.
package freezer
