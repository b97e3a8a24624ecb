// Package jepsen breaks real lockerd clusters on purpose and judges what their
// clients were told meanwhile. Its command is jepsen/cmd/jx.
//
// A run starts lockerd processes, each on a host of its own (a network namespace
// with a file system on a loop device), lets clients work on locks, injects faults
// by a schedule that a seed fixes, heals everything, and then checks the history.
//
// # What a verdict rests on
//
// Every operation is stamped before it is sent and after it has returned, by one
// clock of one process, and is one of
//
//	ok    the cluster said that it was done
//	fail  it certainly had no effect
//	info  nobody knows; it may take effect at any later time, or never
//
// Facts that clients were told are never changed by a check. What the servers'
// event streams say is used to learn more about info operations, and is itself
// checked: against the clients' facts, against the other servers, and for gaps
// in the fences, without which it would prove nothing.
//
// A verdict is pass, fail or undecided. Undecided is not a pass: it has an exit
// status of its own, and fails whoever asked for a pass.
//
// # What is left behind
//
// Nothing. A run lives in network, mount and pid namespaces of its own, its disks
// are files of a tmpfs that only it has mounted: the kernel removes all of it with
// the process. The one thing that could survive, a frozen file system, is thawed
// by the parent process, and by "jx sweep".
package jepsen
