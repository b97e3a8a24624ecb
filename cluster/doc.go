// Package cluster runs one node of the lock cluster: the only place where the
// lock table, Raft, sockets and timers meet.
//
// # The idea
//
// A node is either a server, which holds a replica of the table and votes, or an
// agent, which holds none. Both serve clients alike. A client's request becomes
// an fsm command; the node numbers it, hands it to the leader (itself, or over a
// link to the leader's node) and keeps it until an answer comes. When the leader
// changes, every unanswered command is handed to the new one again: the table
// remembers what it answered, so a command counts once however often it arrives.
// The client's connection stays open throughout and sees nothing but delay.
//
// # What must hold
//
//   - An answer is given only for what a quorum has written to disk.
//   - A command is applied at most once: its number (incarnation, sequence) is
//     in the log beside it.
//   - A waiting request is registered before it is proposed, so that a grant
//     can never arrive before someone listens for it.
//   - A grant reaches the node of its client twice, from the leader at once and
//     from the node's own log later; the first one counts.
//   - Nothing that waits is granted while its node is out of touch with the leader:
//     nobody could be told.
//   - A grant whose client has gone is withdrawn by name of the request, so that
//     it can never end what the same owner asked for later.
//   - Linearizable reads go by an index the leader vouched for after it proved
//     that it still leads, and only once it has applied its own term's first entry.
//     It is that of what is committed: a follower may have applied more than its leader.
//   - Nothing runs as leader before that entry either, and whatever runs as
//     leader only proposes: what happens is decided by the log.
//   - A lock is freed for a death only when the process is dead for certain, and
//     no connection that its descendants have inherited is open.
//   - Nobody answers for another server: a Raft connection says whom it is for. Whoever
//     has lost its data is another server than before, though at the same address.
//   - A server that an operator has removed is not taken back: the table remembers it.
//     It is told only when Raft's configuration is without it for certain.
//   - Nothing is frozen for an order before every one of its nodes has reported that it
//     is ready, and nothing stays frozen for longer than Config.OrderGrace after its end:
//     a node that has a part asks the leader, which answers by a quorum's word, and
//     thaws when it has had no answer for that long. If it hangs, what it has frozen it
//     with thaws after twice that: Task.Lease.
//   - Who gives orders is known by the kernel's word, and never by the request's own.
//   - Any error of the disk ends the node: a replica that cannot trust its log
//     must not vote.
//
// # Orders
//
// The ledger of orders is in the table, and there it is decided what becomes of them
// (see fsm). The leader tells each node that has a part what to do, when the table comes
// to it and again every second until the node has reported it done; an order's state
// only rises, so that a word which is late or comes twice does no harm. A node carries
// out its part by its Executor, with a goroutine of its own, and reports to the table
// like any client. It gets ready for orders in the order of the log, so that of two which
// are in each other's way the first one wins. A new leader gives the nodes of orders
// Config.OrderGrace to come by before it calls them away, and none to a server whose
// process is known to have ended. Who has asked follows the order at the replica of the node asked, or,
// if that is an agent, at the leader's.
//
// # Goroutines
//
// Every goroutine is started by Node.run, ends when the node's context does, and
// Close waits for all of them. Locks are leaves: nothing that blocks is called
// with one held.
package cluster
