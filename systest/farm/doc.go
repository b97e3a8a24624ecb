// Package farm runs a cluster of real lockerd processes on this host, and makes
// its nodes fail: for the system tests and for measurements.
//
// A farm disturbs nobody. Its data is in a temporary directory of its own. Its
// nodes have loopback addresses and ports that nobody else uses, outside the range
// that the kernel gives to outgoing connections, so that a node finds its ports
// free when it comes back. With [Options].Hosts each node has a network namespace,
// joined to the others by a bridge, and can be cut off without a word. With
// [Options].Named each has at least a host's name of its own.
//
// [Farm.Close] ends and removes everything. If the program itself is killed, the
// kernel ends the nodes, and with them their namespaces.
package farm
