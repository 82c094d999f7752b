// Package checks runs health checks: http, tcp, udp, grpc, h2ping, ttl and alias.
//
// It owns how a check is validated, made, timed and judged (thresholds between
// results and status, truncation of output). It never knows who asked: a Runner
// reports through a func. It never runs commands, in a shell or otherwise: a check
// that would is refused, because a registration API that runs commands is remote
// code execution.
package checks
