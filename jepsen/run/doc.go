// Package run puts the pieces of a run together: a sandbox, a cluster, clients, a
// nemesis, an observer and the checks, and stores what came of it.
package run
