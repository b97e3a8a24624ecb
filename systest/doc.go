// Package systest tests the cluster from outside: real lockerd processes on real
// disks and sockets, killed, stopped and restarted under clients of both
// protocols, and real processes that hold locks for as long as they live.
//
// What it asserts is what a user would notice: who holds a lock, in which order
// waiters get it, how long they stand still, what a program says when it refuses.
// The tests wait for conditions. They let time pass only where nothing must happen
// meanwhile. [farm] runs the processes.
package systest
