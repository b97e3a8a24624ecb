// Package nemesis injects faults into a cluster and heals them.
//
// A fault tells what it has done to whom, so that a history shows it, and proves
// where it can that it has bitten: a fault that does nothing is the commonest
// false comfort.
package nemesis
