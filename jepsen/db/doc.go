// Package db runs the cluster under test: lockerd processes, each on its own host
// and disk, and the ways to look into them from outside.
package db
