// Package freezer freezes processes and file systems of this host for a while, and
// thaws them again whatever happens.
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
// # File systems
//
// A file system is frozen by the kernel (FIFREEZE, ioctl_fs(2)): what was written is on
// the disk, consistent, and whoever writes waits for the thaw, in uninterruptible
// sleep. Reading goes on. Other than Tru64 UNIX, Linux holds back every write, also one
// that makes no file longer.
//
// All mounts of a file system are one: bind mounts, subvolumes of a btrfs. Several in one
// order are frozen as one, the youngest mount first, and not at all if one cannot be.
// As long as a guard holds one it cannot be unmounted. Those that the system needs, or
// who has to thaw, are refused ([ErrProtected]); they are told by the kernel's number,
// so it makes no difference where else they are mounted.
//
// [FreezeFS], [ThawFS] and [QueryFS] are for freezes that last longer than who has
// asked for them. The kernel does not say what is frozen; QueryFS looks into the journals,
// and asks the kernel for a change of no options, which it refuses if so. Where
// that is not without effect it is not done.
//
// The kernel cannot be told to give up a freeze that has begun: until everything is
// on the disk a deadline, or a thaw, waits. And it should not be killed in a thaw of a
// btrfs: that would be thawed, but read-only until it is mounted anew.
//
// # The guard
//
// Who freezes could be killed before it thaws. So a process of its own does both
// ([Start]): this program once more, locked in memory, in its own session. It arms its
// timer and opens all that it needs before the first signal. It thaws when the requester
// says so ([Guard.Thaw]), when the time is up, and when the requester's socket closes,
// which it does with the last of the requester. One that is stopped, or hangs, leaves its
// socket open: for an order with a Lease the guard thaws as well when the requester has
// been silent for that long ([Guard.Renew]). A detached freeze outlives the
// requester, up to its deadline; [List] finds it, and [Adopt] gets hold of it.
//
// A guard keeps a journal in memory (tmpfs), where each line is written before what it
// says is done. If the guard is killed, the requester thaws by the journal; if both
// are, the next who starts a guard does, or [Recover].
//
// A guard that is asked to ([Guard.Prepare]) looks before, and refuses what can be refused
// while nothing is frozen: so several hosts can be asked, and be frozen at the same time
// if all of them can be.
//
// # The executor
//
// A daemon that freezes for others has an [Executor]. It reads what they want, runs the
// hooks of the host, has each order carried out by a guard of its own, and thaws at
// once what any guard of the host leaves that is killed.
//
// # Invariants
//
// Whatever was signalled is signalled again by the thaw, and nothing else is. A process
// is signalled by a pidfd that was opened before its start time was read, so never for
// another one of its number; the same goes for recovery. A file system is thawed by a
// directory of it that was open all the time; in recovery, if it has the number, the
// type and the device that it had. Nothing is done that the journal does not know how
// to undo. After an error nothing is frozen.
//
// No two guards hold the same: the second is refused ([ErrHeld]).
//
// What somebody else has thawed is let go of, and the freeze ends ([ErrBroken]): a cgroup at
// once, as the kernel tells of it; file systems within about a second, as the guard has to
// ask; processes at the thaw. A file system that somebody else thaws and freezes again
// within that second is taken for the guard's own.
//
// Process numbers are those of our pid namespace, in which /proc has to be. Guards of other
// pid namespaces, as of containers, that use the same directory are known by the locks of their
// journals: what file systems and cgroups they have frozen is refused, thawed and recovered
// like that of others; processes are left to who can see them. A guard ends with its pid
// namespace: what it has frozen is thawed then by who watches over the directory, as an
// [Executor] does, or by the next who starts a guard there. Freezing takes root.
package freezer
