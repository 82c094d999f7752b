// Package consensus owns Raft: its log and its settings, the adapter through
// which committed commands reach the store, who leads, and up to where a reader
// must wait to see every write that was acknowledged before it asked.
//
// It never looks into a command, and it never continues after the disk failed
// once: a store that returned an error stops the node, because after a failed
// sync nobody knows what is on the disk.
package consensus
