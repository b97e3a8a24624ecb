// Package disk makes small file systems, one for each node, and makes them fail:
// the power goes, writes hang or fail, the space runs out.
//
// Invariant: nothing here touches a file system that it has not made. The images
// are in memory, as files that have no place in any directory, and each loop device goes
// away with its mount.
package disk
