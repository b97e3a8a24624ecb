// Package client takes, keeps and gives up locks: for Go what IPC::Locker is for
// Perl, over the same line protocol and with the same environment.
//
// A [Locker] stands for one lock (or one of several, or all of them at once) and
// one owner. Lock waits for it, Unlock gives it up, Lost tells when it has ended
// in between, and Fence is the number by which whatever the lock protects can
// refuse a holder of the past.
//
// # What can go wrong, and what happens then
//
//   - A server that does not answer: the next of the list is asked. The one that
//     answered comes first from then on.
//   - The connection drops during a wait, or the node stops: the request is made
//     again at the next server, with the same request id, and keeps its place.
//   - The connection drops while the lock is held: the hold stays. The Locker
//     connects again and asks for its hold by its fence; if that has ended,
//     Lost says so.
//   - The answer to Unlock is lost: it is asked for again; releasing twice is
//     harmless, because a release names the fence it means. If the hold is over
//     then, servers say what has ended it: a release of its owner is success,
//     anything else [ErrLost]. They remember that for a while; after that, or when
//     they were started anew meanwhile, the answer is [ErrUncertain].
//
// Invariant: a lock is reported as held only after a server's answer that says
// so was read, and a lease is relied upon only for as long as is certain by our
// clock since the request that began it.
//
// # Servers of IPC::Locker
//
// They are recognised by their answer and served without the extensions. What a
// caller asked for that they do not have (shared holds, slots, all-of, leases,
// fences) is [ErrUnsupported], before anything is locked. They do not tell when
// a lock has been broken.
package client
