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
// # Proto 2
//
// A client that sends "proto 2" is answered "proto 2 NODE" and may then use, as
// well, the settings
//
//	request HEX32 [TURN]   which of several requests of one user; 0s = the only one
//	choice any|all         of the locks: the first free one, or all at once
//	mode exclusive|shared|slots N
//	lease SECONDS          the hold ends unless renewed within this time; 0 = none
//	wait SECONDS           longest wait of a LOCK; 0 = for ever
//	start TICKS, boot ID   which process has that pid, beside pid and hostname
//	fence N                the one hold meant by UNLOCK, BREAK_LOCK, RENEW, ANCHOR; 0 = none
//
// and the verbs
//
//	RENEW    proof of life of the hold with this fence; its "lost" comes here from now on
//	CANCEL   ends the LOCK that waits, or releases what the last LOCK was granted
//	HOLDS    "hold JSON" and "waiter JSON" lines, and a blank line
//	PING     "pong"
//	ANCHOR   "anchored FENCE": see below
//
// TURN counts the times that a client makes its request anew: 1, 2 and so on. A
// LOCK that comes behind one of a later turn, or behind an UNLOCK of that request
// without a fence, is answered with "superseded", however late and whatever has become
// of the others. So who numbers turns takes another id for its next LOCK.
//
// CANCEL is the one verb that is read while a LOCK waits. It is answered by a
// status block with the error cancelled, which also stands for the answer of the
// LOCK it ends. A LOCK that ended just before has been answered by a block of its
// own: the client reads on until it sees the error cancelled.
//
// ANCHOR, on a connection of its own, ties the hold with this fence to all who
// have that connection open, beside the process that pid, hostname, start and boot
// name (as its LOCK did): a hold that ends with its process does so only when no
// anchor of it is open any more. Descendants inherit the connection, so the lock
// lasts until the last of them has gone. After the answer neither side sends
// anything; the server closes when the hold is over, or when it stops. A node that
// cannot watch the process, since it runs on another host, answers with the error
// elsewhere.
//
// A status block has all names, then "fence N"; an error has a text after its
// word; "print_waiting" is followed by "place N" where that is known. Between
// blocks may come
//
//	lost FENCE CAUSE [BY]  the hold is over: limit, lease, broken, process, undelivered, owner
//	                       (before the answer to an UNLOCK that names it, too, if it was before that)
//	moved HOST:PORT ...    the node stops; places in queues are kept a while for who asks there
//
// The error words are no_leader, too_long, too_many, bad_request, refused,
// timeout, cancelled, lost, superseded, stopping and elsewhere.
//
// # Bounds and faults
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
