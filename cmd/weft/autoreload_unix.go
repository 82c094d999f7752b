//go:build unix

package main

import (
	"io/fs"
	"strconv"
	"syscall"
)

// inode is another one when a file was replaced by rename.
func inode(info fs.FileInfo) string {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(s.Ino, 10)
	}
	return ""
}
