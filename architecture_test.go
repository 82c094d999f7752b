// Package weft_test holds the walls of the architecture: who may import whom,
// which package explains itself, how wide a composition struct may grow. The
// table is that of ARCHITECTURE.md; change both or neither.
package weft_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weftmesh/weft"

// Names for imports that a rule speaks of. A name that ends in "/..." covers a subtree.
const (
	grpc       = "google.golang.org/grpc/..."
	raft       = "github.com/hashicorp/raft/..."
	raftBolt   = "github.com/hashicorp/raft-boltdb/..."
	memberlist = "github.com/hashicorp/memberlist/..."
	netHTTP    = "net/http/..."
	netPkg     = "net"
)

// forbidden says what a package must never import: own packages (no dot in the
// first element) transitively, all others directly.
var forbidden = map[string][]string{
	"catalog":          {"catalog/store", "catalog/wire", "connect/...", "agent/...", "server/...", "cmd/...", grpc, raft, netPkg, netHTTP},
	"catalog/acl":      {"catalog/store", "catalog/wire", "connect/...", "agent/...", "server/...", "cmd/...", grpc, raft, netPkg, netHTTP},
	"catalog/durable":  {"catalog", "catalog/acl", "catalog/store", "catalog/wire", "connect/...", "agent/...", "server/...", "cmd/...", grpc, raft, netPkg, netHTTP},
	"catalog/store":    {"connect/...", "agent/...", "server/...", "cmd/...", raft, raftBolt, grpc, netPkg, netHTTP, "math/rand/..."},
	"catalog/wire":     {"catalog/store", "agent/...", "server/...", "connect/...", "cmd/..."},
	"connect/identity": {"catalog/...", "connect", "connect/ca", "connect/enroll", "connect/tunnel", "connect/l7", "agent/...", "server/...", "cmd/..."},
	"connect/enroll":   {"catalog", "catalog/acl", "catalog/store", "catalog/wire", "connect", "connect/ca", "connect/tunnel", "connect/l7", "agent/...", "server/...", "cmd/...", grpc, raft, memberlist, netHTTP},
	"connect/ca":       {"server/...", "agent/...", "catalog/store", "cmd/..."},
	"connect/tunnel":   {"catalog/...", "connect", "connect/identity", "connect/ca", "agent/...", "server/...", "cmd/..."},
	"connect/l7":       {"connect", "agent/...", "server/...", "cmd/...", grpc},
	"connect":          {"agent/...", "server/...", "catalog/store", "catalog/wire", "cmd/...", grpc},
	"server/mux":       {"catalog/...", "connect/...", "agent/...", "server", "server/rpc", "server/consensus", "cmd/..."},
	"server/consensus": {"agent/...", "cmd/...", grpc, memberlist, netHTTP},
	"server/rpc":       {"agent/...", "cmd/...", raft, raftBolt, memberlist, netHTTP},
	"server":           {"agent/...", "cmd/..."},
	"agent/discover":   {"server/...", "cmd/...", "catalog/store", "agent/dns", "agent/httpapi", "agent/remote", grpc, netHTTP},
	"agent/events":     {"server/...", "cmd/...", "catalog/store", "agent/gossip", "agent/httpapi", "agent/remote", grpc, raft, netHTTP},
	"agent/gossip":     {"server/...", "cmd/...", grpc, raft},
	"agent/local":      {"server/...", "cmd/...", "connect", "connect/identity", "connect/ca", grpc, netHTTP},
	"agent/central":    {"server/...", "cmd/...", "catalog/store", grpc, netHTTP},
	"agent/checks":     {"server/...", "cmd/...", "agent/local"},
	"agent/remote":     {"server/...", "cmd/...", "catalog/store", netHTTP},
	"agent/sidecar":    {"server/...", "cmd/...", "catalog/store", grpc, netHTTP},
	"agent/handover":   {"server/...", "cmd/...", "catalog/store", "agent/httpapi", "agent/remote", grpc, netHTTP},
	"agent/httpapi":    {"server/...", "cmd/...", "catalog/store", grpc, memberlist},
	"agent/dns":        {"server/...", "cmd/...", "agent/remote"},
	"agent/guard":      {"server/...", "cmd/...", "agent", "agent/checks", "agent/dns", "agent/gossip", "agent/httpapi", "agent/local", "agent/remote", "agent/sidecar"},
	"agent/telemetry":  {"catalog/...", "connect/...", "server/...", "cmd/...", "agent", "agent/httpapi", grpc, netHTTP},
	"agent/watches":    {"server/...", "cmd/...", "catalog/store", "catalog/wire", "agent/httpapi", "agent/local", "agent/remote", grpc},
	"agent":            {"server/...", "cmd/...", raft, raftBolt},
}

type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Dir,GoFiles,Imports", "./...").Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	pkgs := map[string]*pkg{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list output: %v", err)
		}
		if own, ok := strings.CutPrefix(p.ImportPath, module+"/"); ok {
			pkgs[own] = &p
		}
	}
}

func covers(rule, imp string) bool {
	if base, ok := strings.CutSuffix(rule, "/..."); ok {
		return imp == base || strings.HasPrefix(imp, base+"/")
	}
	return imp == rule
}

func TestImportsPointOneWay(t *testing.T) {
	pkgs := packages(t)
	for name, rules := range forbidden {
		p, ok := pkgs[name]
		if !ok {
			continue // a room that is not built yet
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module+"/") {
				continue
			}
			for _, r := range rules {
				if covers(r, imp) {
					t.Errorf("%s imports %s, which it must never do (see ARCHITECTURE.md, packages)", name, imp)
				}
			}
		}
		for own, via := range reach(pkgs, name) {
			for _, r := range rules {
				if covers(r, own) {
					t.Errorf("%s reaches %s by %s, which it must never do (see ARCHITECTURE.md, packages)", name, own, via)
				}
			}
		}
	}
}

// reach lists the own packages that name imports, however deep, each with the way there.
func reach(pkgs map[string]*pkg, name string) map[string]string {
	seen := map[string]string{}
	var walk func(at, via string)
	walk = func(at, via string) {
		p := pkgs[at]
		if p == nil {
			return
		}
		for _, imp := range p.Imports {
			own, ok := strings.CutPrefix(imp, module+"/")
			if !ok || seen[own] != "" {
				continue
			}
			seen[own] = via + " → " + own
			walk(own, seen[own])
		}
	}
	walk(name, name)
	return seen
}

func TestEveryPackageIsKnownAndExplained(t *testing.T) {
	for name, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		top, _, _ := strings.Cut(name, "/")
		if !slices.Contains([]string{"server", "agent", "connect", "catalog", "cmd", "website"}, top) {
			t.Errorf("%s: no top-level folder but server, agent, connect, catalog, cmd and website holds Go packages", name)
		}
		if _, ok := forbidden[name]; !ok && top != "cmd" && top != "website" {
			t.Errorf("%s has no row in the import table of architecture_test.go", name)
		}
		if slices.Contains([]string{"util", "utils", "common", "lib", "types", "pkg", "internal"}, path.Base(name)) {
			t.Errorf("%s: a package is named for what it owns", name)
		}
		if len(p.Doc) < 40 {
			t.Errorf("%s: its package comment must say what it owns and why", name)
		}
		for _, imp := range p.Imports {
			if imp == "testing" && !strings.HasPrefix(name, "cmd/meshtest") {
				t.Errorf("%s imports testing outside a test", name)
			}
		}
	}
}

// TestOnlyNeedSkips keeps every skip in the one place that CI turns into a failure.
func TestOnlyNeedSkips(t *testing.T) {
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || p == filepath.Join("cmd", "meshtest", "proc", "need.go") {
			return err
		}
		tree, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, s.Sel.Name) {
				if x, ok := s.X.(*ast.Ident); ok && slices.Contains([]string{"t", "b", "tb", "f"}, x.Name) {
					t.Errorf("%s calls %s.%s: only meshtest/proc.Need may skip", p, x.Name, s.Sel.Name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCompositionStructsStayNarrow keeps Agent and Server from becoming the
// object that is the program.
func TestCompositionStructsStayNarrow(t *testing.T) {
	for dir, typ := range map[string]string{"agent": "Agent", "server": "Server"} {
		fields, methods := measure(t, dir, typ)
		if fields > 15 {
			t.Errorf("%s.%s has %d fields, at most 15 are allowed", dir, typ, fields)
		}
		if methods > 8 {
			t.Errorf("%s.%s has %d methods, at most 8 are allowed", dir, typ, methods)
		}
		if fields == 0 {
			t.Errorf("%s.%s not found", dir, typ)
		}
	}
}

func measure(t *testing.T, dir, typ string) (fields, methods int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.TypeSpec:
				if st, ok := x.Type.(*ast.StructType); ok && x.Name.Name == typ {
					fields = st.Fields.NumFields()
				}
			case *ast.FuncDecl:
				if x.Recv != nil && strings.TrimPrefix(exprName(x.Recv.List[0].Type), "*") == typ {
					methods++
				}
			}
			return true
		})
	}
	return fields, methods
}

func exprName(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.StarExpr:
		return "*" + exprName(x.X)
	case *ast.Ident:
		return x.Name
	default:
		return fmt.Sprintf("%T", e)
	}
}

// TestFilesStayReadable holds the hard limit on file length.
func TestFilesStayReadable(t *testing.T) {
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || d.Name() == "public") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if n := fset.Position(f.FileEnd).Line; n > 900 {
			t.Errorf("%s has %d lines, at most 900 are allowed", p, n)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || strings.HasSuffix(p, "_test.go") {
				continue
			}
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > 120 {
				t.Errorf("%s: %s has %d lines, at most 120 are allowed", p, fn.Name.Name, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
