package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options say how the demo runs.
type Options struct {
	// Binary is the weft binary that runs the agent and the commands shown.
	Binary string
	// Once ends the demo after its last step.
	Once bool
	Out  io.Writer
	// Color uses terminal colours.
	Color bool
}

// stepTimeout bounds every wait of the demo for the system to do its part.
const stepTimeout = 20 * time.Second

// show is a demo under way.
type show struct {
	out   io.Writer
	style style
	step  int
	bin   string

	dir     string        // of what the agents keep
	dbHost  *agentProcess // the server, and the agent of db
	webHost *agentProcess // the agent of web
	web     *webService
	db      *dbService
	tap     *tap
}

// Run plays the demo. It returns an error as soon as a step is not as it should
// be, and nil when ctx ends after the last step.
func Run(ctx context.Context, o Options) error {
	s := &show{out: o.Out, style: style{on: o.Color}, bin: o.Binary}
	defer s.close()
	begin := time.Now()
	for _, step := range []func(context.Context) error{
		s.startHosts, s.registerServices, s.refused, s.allowed, s.onTheWire, s.cut,
	} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.printf("\n%s %v\n", s.style.bad("not as it should be:"), err)
			for _, a := range s.hosts() {
				s.printf("\nlast lines of the log of %s:\n%s\n", a.node, a.log.tail(15))
			}
			return err
		}
	}
	s.printf("\n%s in %.1f s. Nothing above is canned: each fact was read from the API, a certificate, the log or the wire.\n",
		s.style.good("Everything was as it should be"), time.Since(begin).Seconds())
	if o.Once {
		return nil
	}
	return s.linger(ctx)
}

// linger leaves the mesh up for the reader.
func (s *show) linger(ctx context.Context) error {
	s.printf("\n%s\n", s.style.title("It is still running. In another terminal:"))
	s.printf("  export WEFT_HTTP_ADDR=%s   # %s; %s is at %s\n", s.dbHost.http, s.dbHost.node, s.webHost.node, s.webHost.http)
	for _, c := range []string{
		"weft intention list", "weft intention check web db", "weft intention create -replace -allow web db",
		"weft members", "weft catalog services", "weft connect status", "weft monitor",
	} {
		s.printf("  %s\n", c)
	}
	s.printf("  curl http://%s/            # web, which asks db through the mesh\n", s.web.addr())
	if s.bin != "" {
		s.printf("  (weft is %s; `make build` gives you bin/weft)\n", s.bin)
	}
	s.printf("\nCtrl-C ends it.\n")
	select {
	case <-ctx.Done():
		return nil
	case <-s.dbHost.done:
		return fmt.Errorf("the agent of %s ended by itself: %s", s.dbHost.node, s.dbHost.log.tail(5))
	case <-s.webHost.done:
		return fmt.Errorf("the agent of %s ended by itself: %s", s.webHost.node, s.webHost.log.tail(5))
	}
}

func (s *show) close() {
	for _, a := range s.hosts() {
		a.stop()
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir) // of a temporary folder
	}
	if s.tap != nil {
		s.tap.close()
	}
	if s.web != nil {
		s.web.close()
	}
	if s.db != nil {
		s.db.close()
	}
}

// hosts are the agents that were started, those first that are to end first.
func (s *show) hosts() []*agentProcess {
	return slices.DeleteFunc([]*agentProcess{s.webHost, s.dbHost}, func(a *agentProcess) bool { return a == nil })
}

func (s *show) startHosts(ctx context.Context) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "weft-demo-"); err != nil {
		return fmt.Errorf("no place for what the agents keep: %w", err)
	}
	if s.dbHost, err = startServer(ctx, s.bin, "db-host", filepath.Join(s.dir, "db-host")); err != nil {
		return err
	}
	token := filepath.Join(s.dir, "join.token")
	if out, err := s.weft(ctx, "join-token", "-ttl", "10m", "-out", token); err != nil {
		return fmt.Errorf("making a join token: %w\n%s", err, out)
	}
	if s.webHost, err = joinServer(ctx, s.bin, "web-host", filepath.Join(s.dir, "web-host"), token, s.dbHost); err != nil {
		return err
	}
	roots, _, err := s.webHost.client.Agent().ConnectCARoots(nil)
	if err != nil {
		return err
	}
	s.begin("Two agents run, as on two hosts. One is the server and certificate authority, too; the other joined it with a token.")
	for i, a := range []*agentProcess{s.dbHost, s.webHost} {
		self, err := a.client.Agent().Self()
		if err != nil {
			return err
		}
		s.fact(fmt.Sprint(self["Config"]["NodeName"]), fmt.Sprintf("%s, process %d, HTTP API at %s, serving after %d ms",
			[]string{"server and agent", "agent"}[i], a.cmd.Process.Pid, a.http, a.serving.Milliseconds()))
	}
	s.fact("trust domain", roots.TrustDomain)
	return nil
}

func (s *show) registerServices(ctx context.Context) error {
	var err error
	if s.db, err = startDB(); err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	inbound, upstream := ports[0], ports[1]
	if s.tap, err = startTap(inbound); err != nil {
		return err
	}
	if s.web, err = startWeb(upstream); err != nil {
		return err
	}
	// db's proxy listens on its own port, and tells the others the tap's: all that
	// they send to db crosses the tap, as a wire between two hosts would be tapped.
	if err := s.dbHost.register(dbRegistration(s.db.port(), s.tap.port(), inbound)); err != nil {
		return err
	}
	if err := s.webHost.register(webRegistration(s.web.port(), upstream)); err != nil {
		return err
	}
	for i, at := range []*agentProcess{s.webHost, s.dbHost} {
		name := []string{"web", "db"}[i]
		if err := at.waitProxy(ctx, name); err != nil {
			return err
		}
		if i == 0 {
			s.begin("A service is registered on each: web and db. Each got an identity and a proxy, in the agent of its host.")
		}
		p, err := at.proxy(ctx, name)
		if err != nil {
			return err
		}
		s.fact(name, fmt.Sprintf("%s, certificate until %s", p.Certificate.URI, p.Certificate.NotAfter.UTC().Format("2006-01-02 15:04 MST")))
		if p.Inbound != nil {
			s.more("mutual TLS on %s, for the application on %s", p.Inbound.Addr, p.Inbound.Local)
		}
		for _, u := range p.Upstreams {
			if u.Listener != nil {
				s.more("%s's application reaches %s by dialling %s, in plain TCP on loopback", name, u.Name, u.Listener.Addr)
			}
		}
	}
	return nil
}

func (s *show) refused(ctx context.Context) error {
	var answer webAnswer
	// The proxies learn of each other within moments; until then the refusal would
	// be "no instance", which is not what this step is about.
	line, err := s.until(ctx, "the proxy logs the refusal", func() (string, error) {
		a, err := s.web.ask(ctx)
		if err != nil {
			return "", err
		}
		if answer = a; a.Word != "" {
			return "", fmt.Errorf("db answered %q although nothing allows it", a.Word)
		}
		return s.dbHost.log.find("reason=denied", "source=web", "destination=db")
	})
	if err != nil {
		return err
	}
	s.begin("web asks db. Nothing allows it, so db's proxy refuses: the default is deny.")
	s.fact("web says", answer.Text)
	s.fact("db's log says", fields(line, "source", "destination", "reason", "rule", "hint"))
	return s.command(ctx, 1, "intention", "check", "web", "db")
}

func (s *show) allowed(ctx context.Context) error {
	s.begin("Say who may talk to whom.")
	if err := s.command(ctx, 0, "intention", "create", "web", "db"); err != nil {
		return err
	}
	s.tap.reset()
	answer, err := s.until(ctx, "db's answer", func() (string, error) {
		a, err := s.web.ask(ctx)
		if err == nil && a.Word == "" {
			err = errors.New(a.Text)
		}
		return a.Text, err
	})
	if err != nil {
		return err
	}
	if !strings.Contains(answer, s.db.word) {
		return fmt.Errorf("web got %q, which is not db's word %q", answer, s.db.word)
	}
	s.begin("web asks db again: allowed, over mutual TLS between the two proxies.")
	s.fact("web says", answer)
	if err := s.live(ctx); err != nil {
		return err
	}
	p, err := s.dbHost.proxy(ctx, "db")
	if err != nil {
		return err
	}
	for _, peer := range p.Peers {
		if peer.Direction == "inbound" {
			s.fact("db's proxy sees", peer.Peer)
		}
	}
	if p, err = s.webHost.proxy(ctx, "web"); err != nil {
		return err
	}
	for _, peer := range p.Peers {
		if peer.Direction == "outbound" {
			s.fact("web's proxy sees", peer.Peer)
		}
	}
	return nil
}

// live opens the connection that a later step cuts, and waits until data flows on it.
func (s *show) live(ctx context.Context) error {
	if err := s.web.stream(ctx); err != nil {
		return fmt.Errorf("a long connection from web to db: %w", err)
	}
	_, err := s.until(ctx, "ticks on the long connection", func() (string, error) {
		if n := s.web.ticks.Load(); n < 3 {
			return "", fmt.Errorf("%d ticks so far", n)
		}
		return "", nil
	})
	return err
}

func (s *show) onTheWire(ctx context.Context) error {
	s.begin("What somebody on the wire between the proxies sees: bytes that a tap copied as they passed.")
	seen := s.tap.copied()
	client, server := records(seen.toServer), records(seen.toClient)
	if len(client) == 0 || len(server) == 0 {
		return fmt.Errorf("the tap saw no TLS: %d and %d bytes", len(seen.toServer), len(seen.toClient))
	}
	s.fact("web → db", fmt.Sprintf("%d bytes: %s", len(seen.toServer), summary(client)))
	s.fact("db → web", fmt.Sprintf("%d bytes: %s", len(seen.toClient), summary(server)))
	s.fact("first bytes", fmt.Sprintf("% x …", seen.toServer[:min(16, len(seen.toServer))]))
	hits := strings.Count(string(seen.toServer)+string(seen.toClient), s.db.word)
	s.fact("db's word", fmt.Sprintf("%q was sent; it stands in the captured bytes %d times", s.db.word, hits))
	if hits != 0 {
		return fmt.Errorf("the tap could read what db said")
	}
	hs, err := s.webHost.handshake(ctx, s.tap.addr(), "web")
	if err != nil {
		return fmt.Errorf("reading db's certificate from the wire: %w", err)
	}
	cert := hs.PeerCertificates[0]
	if len(cert.URIs) != 1 {
		return fmt.Errorf("db's certificate has %d URIs, want 1", len(cert.URIs))
	}
	s.begin("db's certificate, as its proxy shows it to a caller who has one too.")
	s.fact("URI", cert.URIs[0].String())
	s.fact("serial", fmt.Sprintf("%x", cert.SerialNumber))
	s.fact("issuer", cert.Issuer.CommonName)
	s.fact("valid", fmt.Sprintf("%s to %s", cert.NotBefore.UTC().Format(time.DateTime), cert.NotAfter.UTC().Format(time.DateTime)))
	s.fact("connection", describe(hs))
	reason, err := stranger(ctx, s.tap.addr())
	if err != nil {
		return err
	}
	s.fact("no certificate", reason)
	return nil
}

func (s *show) cut(ctx context.Context) error {
	before := s.web.ticks.Load()
	s.begin("Change your mind. web still holds a connection on which db ticks.")
	s.fact("ticks so far", fmt.Sprintf("%d", before))
	called := time.Now()
	if err := s.command(ctx, 0, "intention", "create", "-replace", "-deny", "web", "db"); err != nil {
		return err
	}
	select {
	case <-s.web.streamEnded:
	case <-time.After(stepTimeout):
		return errors.New("the live connection was not cut")
	case <-ctx.Done():
		return ctx.Err()
	}
	line, err := s.until(ctx, "the proxy logs the cut", func() (string, error) {
		return s.dbHost.log.find("reason=policy_changed", "source=web", "destination=db")
	})
	if err != nil {
		return err
	}
	s.begin("The live connection is cut.")
	s.fact("web says", fmt.Sprintf("db hung up after %d ticks: %v", s.web.ticks.Load(), s.web.streamErr()))
	s.fact("time", fmt.Sprintf("%d ms after the command was started", s.web.endedAt().Sub(called).Milliseconds()))
	s.fact("db's log says", fields(line, "source", "destination", "reason", "rule"))
	a, err := s.web.ask(ctx)
	if err != nil {
		return err
	}
	if a.Word != "" {
		return errors.New("web still reaches db with a new connection")
	}
	s.fact("a new one", a.Text)
	return nil
}

// until repeats f until it succeeds or the step's time is over.
func (s *show) until(ctx context.Context, what string, f func() (string, error)) (string, error) {
	deadline := time.Now().Add(stepTimeout)
	for {
		v, err := f()
		if err == nil {
			return v, nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-s.dbHost.done:
			return "", errors.New("the agent of db's host ended")
		case <-s.webHost.done:
			return "", errors.New("the agent of web's host ended")
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// Binary is the running program itself, for Options.
func Binary() (string, error) {
	p, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find the weft binary: %w", err)
	}
	return p, nil
}
