package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/cmd/weft/certfiles"
)

func tlsCommand() *cli.Command {
	return group("tls", "Make certificates for the HTTP API and for old agents",
		"Makes an authority of your own and certificates under it, as files in the current folder.\n"+
			"The mesh does not need them: its certificates come from its own authority and renew themselves.",
		group("ca", "Make an authority", "", tlsCACreate()),
		group("cert", "Make certificates under an authority", "", tlsCertCreate()))
}

func domainFlag() cli.Flag {
	return &cli.StringFlag{Name: "domain", Value: "consul", Usage: "The domain of the cluster."}
}

func tlsCACreate() *cli.Command {
	return spec{
		name: "create", usage: "Make an authority",
		about:    "Writes DOMAIN-agent-ca.pem and DOMAIN-agent-ca-key.pem to the current folder. Existing files\nstay as they are, and the command fails. Whoever has the key can sign for everybody.",
		examples: []string{"weft tls ca create", "weft tls ca create -days=365 -name-constraint"},
		flags: []cli.Flag{
			domainFlag(),
			&cli.IntFlag{Name: "days", Value: 1825, Usage: "For how many days it is valid."},
			&cli.StringFlag{Name: "common-name", Usage: "The name of the authority."},
			&cli.StringFlag{Name: "cluster-id", Usage: "The ID of the cluster, as part of the name."},
			&cli.BoolFlag{Name: "name-constraint", Usage: "Let it sign for names in the domain and for localhost alone."},
			&cli.StringSliceFlag{Name: "additional-name-constraint", Usage: "A further domain it may sign for. Implies -name-constraint. May be given many times."},
		},
		action: func(c *cli.Context) error {
			a := certfiles.Authority{CommonName: c.String("common-name"), Days: c.Int("days")}
			if a.CommonName == "" {
				a.CommonName = "weft agent authority"
				if id := c.String("cluster-id"); id != "" {
					a.CommonName += " " + id
				}
			}
			more := c.StringSlice("additional-name-constraint")
			if c.Bool("name-constraint") || len(more) > 0 {
				a.Constraints = append([]string{c.String("domain"), "localhost"}, more...)
			}
			p, err := certfiles.NewAuthority(a)
			if err != nil {
				return usagef(c, "%w", err)
			}
			return writePair(c, c.String("domain")+"-agent-ca.pem", c.String("domain")+"-agent-ca-key.pem", p)
		},
	}.build()
}

func tlsCertCreate() *cli.Command {
	return spec{
		name: "create", usage: "Make a certificate",
		about: "Writes a certificate and its key to the current folder, under the authority that\n" +
			"weft tls ca create made: DC-server-DOMAIN-N.pem, DC-client-DOMAIN-N.pem or DC-cli-DOMAIN-N.pem,\nwith the first N from 0 that is free.",
		examples: []string{"weft tls cert create -server", "weft tls cert create -client -additional-ipaddress=10.0.0.7"},
		flags: []cli.Flag{
			domainFlag(),
			&cli.BoolFlag{Name: "server", Usage: "For a server, which clients also verify by its name."},
			&cli.BoolFlag{Name: "client", Usage: "For an agent that is no server."},
			&cli.BoolFlag{Name: "cli", Usage: "For people and programs that call the HTTP API."},
			&cli.StringFlag{Name: "ca", Usage: "The authority's certificate; DOMAIN-agent-ca.pem when it is not set."},
			&cli.StringFlag{Name: "key", Usage: "The authority's key; DOMAIN-agent-ca-key.pem when it is not set."},
			&cli.IntFlag{Name: "days", Value: 365, Usage: "For how many days it is valid."},
			&cli.StringFlag{Name: "dc", Value: "dc1", Usage: "The datacenter."},
			&cli.StringFlag{Name: "node", Usage: "The name of the node, for -server."},
			&cli.StringSliceFlag{Name: "additional-dnsname", Usage: "A further DNS name. May be given many times."},
			&cli.StringSliceFlag{Name: "additional-ipaddress", Usage: "A further IP address. May be given many times."},
		},
		action: createCert,
	}.build()
}

func createCert(c *cli.Context) error {
	leaf, kind, err := leafOf(c)
	if err != nil {
		return err
	}
	authority, err := readAuthority(c)
	if err != nil {
		return err
	}
	p, err := certfiles.Sign(authority, leaf)
	if err != nil {
		return err
	}
	for n := range 10000 {
		base := fmt.Sprintf("%s-%s-%s-%d", c.String("dc"), kind, c.String("domain"), n)
		_, certErr := os.Lstat(base + ".pem")
		_, keyErr := os.Lstat(base + "-key.pem")
		if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
			return writePair(c, base+".pem", base+"-key.pem", p)
		}
	}
	return errors.New("there are 10000 certificates of this kind here already")
}

func leafOf(c *cli.Context) (leaf certfiles.Leaf, kind string, err error) {
	var kinds []string
	for _, k := range []string{"server", "client", "cli"} {
		if c.Bool(k) {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) != 1 {
		return leaf, "", usagef(c, "say what it is for with one of -server, -client and -cli")
	}
	kind = kinds[0]
	dc, domain, node := c.String("dc"), c.String("domain"), c.String("node")
	if node != "" && kind != "server" {
		return leaf, "", usagef(c, "-node goes with -server only")
	}
	leaf = certfiles.Leaf{Days: c.Int("days"), Server: kind != "cli", Client: true, CommonName: kind + "." + dc + "." + domain}
	if kind == "server" && node != "" {
		leaf.DNSNames = append(leaf.DNSNames, node+".server."+dc+"."+domain)
	}
	if kind != "cli" {
		leaf.DNSNames = append(leaf.DNSNames, leaf.CommonName)
	}
	leaf.DNSNames = append(leaf.DNSNames, "localhost")
	for _, n := range c.StringSlice("additional-dnsname") {
		if !slices.Contains(leaf.DNSNames, n) {
			leaf.DNSNames = append(leaf.DNSNames, n)
		}
	}
	leaf.IPs = []net.IP{net.IPv4(127, 0, 0, 1)}
	for _, s := range c.StringSlice("additional-ipaddress") {
		ip := net.ParseIP(s)
		if ip == nil {
			return leaf, "", usagef(c, "-additional-ipaddress %q is not an IP address", s)
		}
		leaf.IPs = append(leaf.IPs, ip)
	}
	return leaf, kind, nil
}

func readAuthority(c *cli.Context) (p certfiles.Pair, err error) {
	cert, key := c.String("ca"), c.String("key")
	if cert == "" {
		cert = c.String("domain") + "-agent-ca.pem"
	}
	if key == "" {
		key = c.String("domain") + "-agent-ca-key.pem"
	}
	if p.Cert, err = os.ReadFile(cert); err == nil {
		p.Key, err = os.ReadFile(key)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; weft tls ca create makes an authority, -ca and -key name another", err)
	}
	return p, err
}

// writePair writes both files, never over others; the key is for its owner alone.
func writePair(c *cli.Context, cert, key string, p certfiles.Pair) error {
	if err := writeNew(key, p.Key, 0o600); err != nil {
		return err
	}
	if err := writeNew(cert, p.Cert, 0o644); err != nil {
		_ = os.Remove(key) // we made it just now
		return err
	}
	_, err := fmt.Fprintf(c.App.Writer, "==> Saved %s\n==> Saved %s\n", cert, key)
	return err
}

func writeNew(name string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
