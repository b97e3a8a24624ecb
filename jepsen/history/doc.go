// Package history records what clients and the nemesis did and were told, on one
// clock, and reads it back.
//
// Invariant: an operation's invocation is stamped before anything is sent, its
// completion after everything was read. So whatever the cluster did about it lies
// between the two.
package history
