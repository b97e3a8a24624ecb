// Package netns makes hosts on a network of their own, and breaks that network.
//
// A host is a network namespace with one interface on a bridge. It exists as an
// open descriptor only: the kernel removes it with the process that made it. The
// process itself must be in a network namespace made for it (see package run),
// and is refused otherwise.
//
// Cuts are sets of source addresses that a host's own nftables rules drop, so that
// a cut is one-way by nature; a cut in both directions is two of them.
package netns
