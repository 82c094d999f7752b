// Package tunnel carries the connections of applications as streams in one
// authenticated connection between two sidecars (ALPN "weft-tunnel/1"), or one to
// one for peers without tunnels.
//
// It owns the wire format, the state of streams and the drivers that move bytes. It
// never knows identities or policy: whoever hands it a connection has authenticated
// it, and Accept, the owner's callback, judges each stream when it is opened. It
// imports nothing else of weft.
//
// # Layers
//
//   - frame.go, machine.go, window.go: the protocol as pure code. Bytes in, events out; no I/O,
//     no clock, no lock. A model test joins two of them; a fuzz target plays the peer.
//   - Tunnel and Stream: two goroutines a tunnel, a Stream is a net.Conn. Portable,
//     and the reference of the tests.
//   - Driver, with Goroutines and Loops: joins sockets to streams. Loops (Linux) own
//     raw sockets and many tunnels each. One test suite runs over all combinations.
//
// # Protocol
//
// Both sides greet with their window and their limit of streams; the client's
// greeting travels with the end of its handshake, and the server's answer is the
// proof that it accepted the client's certificate (in TLS 1.3 the client's handshake
// ends before that). After it, nothing waits for an answer: OPEN, data and FIN of a
// short connection share a record; but see Silence. Only the client opens; ids rise and are never
// used again, so frames of a finished stream are known and ignored. FIN ends a
// direction; RESET ends what has not ended, and a direction that was complete stays
// complete. The loss of a tunnel resets its streams: a truncated stream never looks
// complete. GOAWAY names the last stream that is served; later ones end with
// ErrUnprocessed and are safe to open elsewhere.
//
// An OPEN may have carried data when it is refused. A RESET says whether the application
// saw any of the stream (unseenBit); up to 16 KiB are kept until the first answer or
// credit, and the owner gets the application back with them (End.App), to be carried
// elsewhere. Nothing is said again that anyone may have heard.
//
// # Silence
//
// A peer that lost its power, or its path, says nothing. When a stream is opened towards
// one that was silent for a second, it is pinged, and nothing is said in new streams until
// it has answered, be it with whatever: a round trip, as connecting would cost. Where it does
// not within the time for connecting, the tunnel drains, and the applications of those
// streams go back to their owner (ErrSilent). What was said to it since it was last heard,
// less than a second of it, may arrive or not and is reset. Streams that it has answered
// once live on as they would on TCP, until the keepalive gives the tunnel up.
//
// # Windows
//
// A stream begins with a window of 32 KiB, which is guaranteed to it. Turning half of it
// over within a round trip brings 256 KiB, and a rate that fills half of that over the
// round trip twice as much, again and again, to 8 MiB. The round trip is the shortest
// that the kernel has seen: one that our own queues lengthen would let windows grow
// where the processor is the limit, and small messages wait behind bulk (so not on
// systems other than Linux, which do not tell). Growth comes out of budgets: 16 MiB a
// tunnel; 96 MiB all tunnels, but each tunnel has 1 MiB that no other takes. Credit that
// a resting stream does not use is recalled (RECALL, RETURN; a peer that knows neither
// keeps it), so bulk of the past takes nothing from bulk of now. What really waits is
// counted, in buffers and not in bytes: a tunnel that exceeds its bound loses the stream
// that has just queued something, and where all exceed 128 MiB, a tunnel with more than
// its share of that (the budget by the tunnels that hold anything) does: who holds most
// pays. No stream is held up by the queue of another.
//
// # What is bounded
//
// A stream's queue by the window, as credit returns for bytes that the application
// took; windows and queues by the budgets above; streams by the greeting, where one more is a violation. To make that exact, a
// stream whose RESET is not written yet still counts, unless the peer ended it too
// (the model test found resets that cross). Answers (credit, reset, pong) are kept as
// state of their streams and not as bytes, so a peer that provokes and never reads
// costs nothing. Streams that ended but hold unread data count up to twice the limit.
// Streams that the peer resets within a second and before they were answered pass that
// limit by: after twice the limit of them (at least a thousand) within a second more are
// refused unjudged until it is over, which is counted, and sixteen times as many are a
// violation.
//
// # The loop
//
// A turn collects all events, only marking; then serves each tunnel that has any:
// read and decrypt all there is, write to applications what they take, read each
// ready application once, straight into the output, and flush once. No timers gather:
// an idle loop sends at once, a busy one batches by itself. The epoll descriptor is
// nested in Go's poller. crypto/tls runs over a transport that returns a temporary
// error when nothing is there; that this leaves it usable is undocumented and pinned
// by a test. Buffers belong to the loop. The tunnel reader never waits: not for an
// application (queue), not for the output (state). A full output stops reading
// applications, nothing else. Owners' callbacks run on the loop and must not block.
//
// All turns run inside one read of that descriptor and their calls are not announced to
// Go's scheduler: announcing them woke its monitor thread for each turn, a quarter of the
// processor time at one connection, and an eighth at short ones, where accept, connect,
// close and the rest are silent, too. A loop that finds no rest announces itself now and
// then. One timer of the loop serves all dials: one for each woke a thread for each.
//
// Two applications of one host are spliced, without tunnel or TLS (Driver.Splice); their
// pipes go back to the loop as soon as they are empty.
//
// A loop can accept by itself (Loops.Listen) and connect by itself (Verdict.Addr):
// about a third of the cost of a short connection is what net does around them.
// A listener moves to the loop that carries what it accepts, so that a short connection
// wakes one loop and not two; its connections are opened in the turn that accepts them. A
// dial on this host is over before it returns, so data that came with OPEN is written at
// once, and not a turn later.
//
// # Tried and left out, or in and worth knowing
//
//   - A writer that appends and writes itself never gathers; one Gosched of the writer
//     goroutine before it takes the buffer does.
//   - Locked threads in epoll_wait, staging sends to the end of the turn, a second loop on
//     few cores, larger chunks than 64 KiB: no gain, or loss.
//   - Polling before each rest, for 30 µs or 100: a single request is answered sooner, and
//     many together cost up to half as much again. After turns of one event only, these
//     cost a tenth more still; between the same two descriptors, and only while it pays
//     (linger), nothing that can be measured.
//   - A Gosched before the goroutine driver writes bulk to the application: nothing. It
//     costs twice what the loop costs for bulk, in hand-offs between goroutines.
//   - An application that reads no more must still be credited until it has said all:
//     when both ends of a stream are so, neither could be read for lack of credit (the
//     chaos test found the hang).
//   - A socket that is duplicated somewhere else is not closed by closing it, nor reset.
//   - A failed write uses a socket's error up: the read after it says "end". So EPIPE,
//     where the application had ended in order, and ECONNRESET are told apart; and the
//     goroutine driver, which reads and writes at once, asks for the state of a socket
//     that says "end" (the chaos test found resets that looked complete).
//   - Closing a socket with unread bytes resets it under the last read of the far end.
//     Who is left by a peer that has said all gets five seconds instead.
//   - Unix sockets have no reset: their applications see an end.
//   - crypto/tls keeps 40 KiB after bulk, for good: replace tunnels that went idle.
//   - A window for the tunnel as a whole, as HTTP/2 has one: who does not read would use
//     it up, and hold up all others.
//   - Credit by quarters of a small window is a record of its own for each eight requests;
//     by halves, and beside what goes that way anyway, it is none.
package tunnel
