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
// # To be told by another host
//
// [Client.AwaitDeath] asks once a second. In the question it also asks to be told,
// by a bit that IPC::Locker's servers do not look at. A [Server] that will do so
// answers with the process's birth, which no other answer has, and watches the
// process with a [Watcher]. When that ends, one datagram goes to the one who asked:
// not that the process has ended, but "look again", which anyone may forge and no
// harm done. The client asks, now for the process of that birth, and has the answer
// that counts; one that has got the number since is another. A birth is as good for
// a server that was started in between, or has forgotten the question.
//
// Each question renews the wish, and the server forgets those that are not renewed
// for five seconds. So nothing has to arrive: a push that is lost, a server that is
// started anew, full, or IPC::Locker's own cost a second, which is what polling
// costs.
//
// Process numbers are those of our own pid namespace, throughout. A node that
// looks after a host has to run in the host's namespace.
//
// # Invariants
//
// A process is reported dead at most once for each [Watcher.Watch], and never
// while it lives. [Signal] reaches the process that was meant or none. The server
// answers only what it is asked, once, to where the question came from, and never
// with more than the question's length, its own name and a few bytes. To that it
// adds one datagram at most, as long as an answer, for a question that wants it.
package pidprobe
