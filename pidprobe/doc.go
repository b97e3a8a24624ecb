// Package pidprobe answers one question: has that process ended?
//
// # What a process is
//
// Numbers are used again. A process is its number, the time it started, and the
// boot of the kernel that ran it ([Process]); another start time or another boot
// under the same number means that the one asked for is gone. A process is dead
// as soon as its last thread is, a zombie included: it holds nothing and will
// never act again. A zombie whose other threads still run is alive, although ps
// shows it as defunct.
//
// # Only a positive death counts
//
// Whoever asks will free a lock or kill a command on [Dead]. So everything that
// is not certain is [Unknown], the zero value: no answer, a host out of reach, a
// /proc that hides the process or belongs to another pid namespace.
//
// # Three ways to ask
//
//   - [Check] looks once, on this host.
//   - [Watcher] waits, on this host, for any number of processes: one pidfd each
//     (pidfd_open(2)) in one epoll set, so that waiting costs nothing and a death
//     is known as soon as the kernel knows it.
//   - [Client] and [Server] speak the pidstat protocol of IPC::Locker, a datagram
//     each way, with other hosts.
//
// Process numbers are those of our own pid namespace, throughout. A node that
// looks after a host has to run in the host's namespace.
//
// # Invariants
//
// A process is reported dead at most once for each [Watcher.Watch], and never
// while it lives. [Signal] reaches the process that was meant or none. The server
// answers only what it is asked, once, to where the question came from, and never
// with more than the question's length, its own name and a few bytes.
package pidprobe
