//go:build !unix

package connect

// canProbe is false where a descriptor cannot be read past the net package;
// relaying then holds a buffer while it waits.
const canProbe = false

func readFD(uintptr, []byte) (int, error) { return 0, wouldBlock{} }
