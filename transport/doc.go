// Package transport turns bytes and connections into the messages that nodes
// and clients exchange. It knows verbs, addresses and frames; it does not know
// what a lock is, and imports nothing else of this module.
//
// # The line protocol
//
// Clients speak IPC::Locker's protocol, unchanged in every byte, with
// extensions that a client turns on with the line "proto 2".
//
// A request is a run of setting lines ("user alice", "locks a b") and one verb
// line ("LOCK"). Settings stay in force for the rest of the connection, so a
// [Request] is the verb with a snapshot of all settings: whoever executes it
// needs to look at nothing else. [Reader] yields requests on the server's side,
// [Request.Append] writes them on the client's.
//
// A reply is a run of lines; most verbs are answered by a [Status] block.
// [ReplyReader] yields them on the client's side.
//
// What holds for both readers:
//
//   - Input is bounded: [MaxLine], [MaxPending], [MaxReplyLine], [MaxNames],
//     [MaxName]. Crossing the first three ends the connection; the others are
//     a fault of the one request.
//   - Lines that are not understood are skipped, as both ends of IPC::Locker
//     do. That is what makes extensions possible.
//   - A setting whose value makes no sense is remembered as a [Fault] and
//     reported by the next verb that depends on it: setting lines have no
//     reply of their own. In particular a hold limit that is no number never
//     becomes "no limit".
//   - An error of the source (a deadline, say) loses nothing: the next call
//     goes on where the last one stopped.
package transport
