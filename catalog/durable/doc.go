// Package durable owns how a file of the data directory is replaced and read back: whole
// or not at all, whatever moment a crash, a power cut or a full disk chooses, and with
// an error that names the file and says what to do when it is damaged.
//
// It knows nothing of what is in the files, and imports nothing of ours.
package durable
