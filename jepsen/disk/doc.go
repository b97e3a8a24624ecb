// Package disk makes small file systems, one for each node, and makes them fail:
// the power goes, writes hang, the space runs out.
//
// Invariant: nothing here touches a file system that it has not made. The images
// are in a directory that the caller gives (a tmpfs of the run), and each loop
// device goes away with its mount.
package disk
