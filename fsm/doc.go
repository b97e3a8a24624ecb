// Package fsm is the lock table as a pure value: [Machine.Apply] takes an entry
// of the replicated log and returns what came of it, results and events, as
// data. There is no clock in it, no I/O, no goroutine and nothing random; time is
// a number that entries carry. Replicas that apply the same entries are equal,
// down to the bytes of their snapshots, and a scenario is a text file (testdata).
//
// # Claims
//
// A claim is a [Hold] or a [Wait]. It belongs to a claimant, (Owner, ID): all
// requests of one claimant are one and the same request made again, and different
// claimants exclude each other even if they have the same owner.
//
// A claimant that makes an ID for one purpose and numbers its requests
// ([Acquire].Turn) has the last word by itself: a request that comes behind a later one,
// or behind a [Release] by ID, is Superseded, whether the claim has ended meanwhile or
// not. The table remembers that for an hour, for the latest 16,384 claimants that had
// to ask twice.
//
// Any other [Acquire] is answered by the first of these rules that fits:
//
//  1. The claimant holds one of the named locks, for [All] a hold that has all of
//     them: it is granted that same hold, with the same fence. Ask, limit, lease,
//     process and autounlock become those of the new request, and the limit counts
//     anew. This comes first, over all the names, so that a request repeated after
//     a lost answer cannot take a second lock. Asking in another mode, or with
//     another number of slots, or for All of more than that hold has, is refused.
//  2. The request names a number of slots that differs from the one in force for
//     other claimants of one of the locks: refused. A refusal changes nothing.
//  3. The claimant waits for just the same (locks in the same order, choice, mode,
//     slots), and is ready to wait on: it keeps its ticket; the rest is replaced.
//  4. Waits of the claimant that have a lock in common with the request are given
//     up in all their queues; their places are lost. (Waits for other locks
//     stay: an owner without request ids may well wait for different locks over
//     different connections.) Then the request is granted if it can be, queued at
//     the end if Block is set, and Busy otherwise, so that no Busy answer ever
//     leaves a wait behind.
//
// A request that takes a claim over from an earlier Ask is told to that one by
// [EventSuperseded]; its Cause is CauseOwner if its wait left the queue (rule 4),
// and CauseNone if the claim itself lives on. [EventRenewed] says what the claim
// is then: whose request, and which process it ends with.
//
// # Queues
//
// Every lock has one queue, strictly first come, first served: only the head may be
// granted, and a newcomer does not overtake a queue even if it would fit beside the
// holders. Tickets are given out once for all queues, so they order all of them
// alike. A waiter of [Any] sits in all its queues; it is granted the first of its
// locks, in its own order of preference, for which it is at the head and fits,
// and leaves the other queues in the same step. A waiter of [All] is granted when
// it is at the head of all its queues and fits in each; until then it keeps those
// behind it waiting. As the queues are ordered alike there is no deadlock. The hold
// of an All request is one, with one fence: whatever ends it, under whichever of
// its names, ends it for all its locks.
//
// Whatever a command or the time ends has ended before anything is granted in its
// place, and all that can be granted is granted before the command's result is
// made: Result.Owner is the owner after that. The order is that of tickets: the oldest
// waiter that can be granted goes first, which may let another be granted, and so on.
//
// # Nodes that are away
//
// A grant is told to its client by the node that the client has asked, and a grant that
// nobody is told of would be held for ever. So a place in a queue counts only while its
// node is in touch with the leader. [NodesAway] has the places of a node stand aside:
// nothing is granted to them, and they are in nobody's way. They keep their tickets, and
// with them their order: they are in line again when the node is back ([NodesBack], or
// anything that it proposes), or, one by one, as their clients ask by other nodes; what
// is free by then is granted at once. [NodeGone] ends them. The number of slots that one
// of them wants stays in force.
//
// # Suspended holds
//
// A job may be put on disk and go on later, elsewhere, with its lock. Meanwhile its hold
// is suspended ([Suspend]): it keeps its locks and its fence, and nothing about its holder
// ends it, be that the end of a process, of a lease or of a connection. Nor is it its
// owner's: what he does by name passes it over, by its fence he is told NotHeld, and asking
// for one of its locks as the same claimant is refused, so that a job which has been put on disk
// cannot run beside itself. A [Break], or a Release by the fence alone, ends it, and so do
// a limit and an order.
//
// The job is ended after that, as it has to run on if its lock is not kept. Whoever ends it
// may be ended himself in between; so a second Suspend, with Ended, says that it is done.
//
// [Resume], which is refused before that, gives it to a new holder: in one step the hold ends
// (CauseResumed) and another
// one begins, with the same locks, mode and slots and a new fence, and nobody is granted
// anything in between. As it goes by the old fence, only one of several who have the same
// job in hand can get it; and as it goes by the file's id, nobody who has an older file of
// the job. The first [Renew] says that the new holder's process has been let
// run. One that ends before has done nothing, and the hold is suspended again for the same
// job, under the new fence.
//
// # Time
//
// Now never falls. Expiry comes first in every entry: all holds whose deadline is
// at or before Now end, by (deadline, fence), then such orders, by id, and then their
// locks are granted on. A
// deadline is the first stamp at which the time has passed for certain: one later than
// the sum of stamp and span, since stamps are cut off to whole milliseconds.
// A deadline beyond the largest Millis never comes.
//
// # Repeated requests
//
// A node numbers its requests within an incarnation. The table remembers every
// answer until the node's Floor passes its number, and a repeated number gets that
// answer without any effect or event. The answer follows what becomes of the claim:
// an Acquire that was Queued becomes Granted, and Done when its claim has ended or
// has been taken over, so that it never tells of a hold that is over; likewise a
// Renew with Attach becomes NotHeld. A [Withdraw] that comes before the Acquire it
// means is remembered as that one's answer.
//
// # Orders
//
// An [Order] is what somebody asks nodes to do on their hosts, such as to freeze
// processes: all of them, or none. What it is about ([Order.Spec]) is read by the nodes
// alone. Here it goes through its states, of which none comes back: nodes prepare; once
// every one has reported that it is ready, all are to go on; once all have reported that
// they are frozen, the order is frozen; it ends, and all are to undo it; once all have,
// it is closed. A report that is repeated, or comes behind a later one of its node,
// changes nothing.
//
// An order ends once, for the first reason that there is ([OrderReason]), and at once:
// somebody asks for that, its time is over, a node could not or has thawed by itself, a
// node is away, gone, removed or succeeded by another one of its name, who had asked by
// an attached order is away or gone, or the hold under which it stands is over. Until
// all are ready nothing is frozen, so an order that ends before has frozen nothing.
// What a node has frozen counts as frozen until the node says otherwise, or is gone:
// then what had frozen it has gone with it.
//
// Its time is counted from the step in which all were ready. To be ready is a matter of
// 60 s, and to be frozen then of 60 s more. A hold with ReleaseLock ends in the step in
// which its order is closed, and not before. The last 100 closed orders are remembered,
// for people, and so that an [OrderOpen] which is repeated opens no other.
//
// # Events
//
// Every change to a hold or a wait has its event, in the order in which the changes
// happened, save one: a [Renew] that attaches nothing only moves the lease. Nodes
// that join and leave are told of by results alone. An order has one whenever its state
// changes; reports that change no more than a part have none.
//
// # Invariants
//
// [Machine.Check] verifies, after every Apply in the tests:
//
//	I1   The holders of a lock are one exclusive one, or shared ones, or at most N
//	     of N slots; all slots holders and waiters of a lock agree on N.
//	I2   Fences, tickets and incarnations are unique, and none is above the last one
//	     given out.
//	I3   Holders stand in the order of their fences, queues in that of tickets.
//	     (Those who stand aside are in none.)
//	I4   No waiter that can be granted is left waiting.
//	I5   A claimant has at most one claim, hold or wait, on any one lock.
//	I6   A claim sits on each of its locks once, and every seat is of a claim that is
//	     in the table. Claims satisfy the rules for requests.
//	I7   The deadline of every hold that has one is in the heap, once, and none is
//	     at or before Now. Nothing begins after Now.
//	I8   Every index leads to all that it should and to nothing else.
//	I9   A lock or a host in the table is in use.
//	I10  A wait's node is open. Remembered answers are at or above the floor, in
//	     order, and say what their request has now.
//	I11  The turns that are remembered are in the order of their times, none too old
//	     or of the future, and each is of another claimant.
//	I12  A wait stands aside if and only if its node is away.
//	I13  The removed servers that are remembered are not too many, and each is another.
//	I14  Orders, open and remembered, are not too many; their ids and nonces are
//	     unique, and no id is above the last one given out. Those that are open are in
//	     the order of their ids.
//	I15  An order is in the state that follows from its parts, which are of different
//	     nodes, and has a reason if and only if it has ended.
//	I16  The nodes of an order that has not ended are in touch, each the latest of its
//	     name; so is who has asked, if it is attached; and the hold that it stands
//	     under is held. What is left of an order that has ended is with nodes that are
//	     open.
//	I17  No order is overdue, or of the future.
//	I18  A suspended hold has no request, no lease and no autounlock, and was not
//	     suspended in the future. One that was resumed, and not renewed yet, was
//	     suspended when its job had ended.
//
// # Cost
//
// Acquire, Release, Withdraw and Renew cost O(log n) at worst, for a table of n
// holds and however long the queues are (times the number of locks named, at
// most [MaxLocks]). What ends several claims, or has their places stand aside, costs that
// for each; to put them back may cost a walk through their queues. Holds and waits are
// never changed once they are in the table, and snapshots share their list, page by
// page, with the table: taking a [Snapshot] costs next to nothing, and a page of
// pointers when one is changed for the first time after it.
package fsm
