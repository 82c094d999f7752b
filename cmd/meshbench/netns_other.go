//go:build !linux

package main

func ownNetwork() (code int, done bool) { return 0, false }

func loopbackUp() error { return nil }

func congestionControl() string { return "the system's" }
