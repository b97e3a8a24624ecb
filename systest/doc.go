// Package systest tests the cluster from outside: real lockerd processes on real
// disks and sockets, killed, stopped and restarted under clients of both
// protocols.
//
// What it asserts is what a user would notice: who holds a lock, in which order
// waiters get it, how long they stand still, what a program says when it refuses.
// The tests wait for conditions and have no fixed pauses. [farm] runs the processes.
package systest
