// Package checks runs health checks: http, tcp, udp, grpc, h2ping, ttl, alias,
// script and os_service.
//
// It owns how a check is validated, made, timed and judged (thresholds between
// results and status, truncation of output). It never knows who asked: a Runner
// reports through a func. A registration API that runs commands is remote code
// execution, so checks of type script stand behind a gate, Scripts, which is shut
// unless an operator opens it.
package checks
