# weft: what can be done here. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

GO       ?= go
# A release sets VERSION; other builds name their commit themselves (weft version).
LDFLAGS  := -s -w $(if $(VERSION),-X main.version=$(VERSION))
# Parts of libraries that nothing here reaches: gRPC's pages of traces and the command line's
# manual pages. They cost each process half a MB.
TAGS     := grpcnotrace,urfave_cli_no_docs
TOOL     := $(GO) tool -modfile=tools/go.mod
PKGS     ?= ./...

##@ Build
.PHONY: build
build: ## bin/weft: one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/weft ./cmd/weft

.PHONY: demo
demo: ## See it work: two services, refused, allowed over mTLS, cut off (about 15 s)
	$(GO) run ./cmd/weft demo

##@ Test
.PHONY: test
test: lint race benchmarks-run ## All that must pass before a change lands (about 10 minutes the first time, 4 after)

.PHONY: race
race: ## Unit, integration and real-program tests under the race detector
	$(GO) test -race -timeout 15m $(PKGS)

.PHONY: benchmarks-run
benchmarks-run: ## Every benchmark once, so that none rots, and what the race detector cannot look at
	$(GO) test -run '^TestNewAddress$$' -bench . -benchtime 1x -timeout 10m $(PKGS) > /dev/null

.PHONY: lint
lint: ## gofumpt, go vet, golangci-lint
	$(GO) vet ./...
	$(TOOL) golangci-lint run
	$(TOOL) golangci-lint fmt --diff

.PHONY: fmt
fmt: ## Format as CI wants it
	$(TOOL) golangci-lint fmt

.PHONY: test-faults
test-faults: build ## Real processes killed, frozen and starved, short form (about 12 minutes; root for disks, networks and a systemd)
	WEFT_BINARY=$(CURDIR)/bin/weft $(GO) test -tags faults -timeout 25m -count 1 ./cmd/meshtest/faults

.PHONY: test-clients
test-clients: build ## Consul's clients, unchanged, against the binary: Prometheus, consul-template, HAProxy, dig (a minute)
	WEFT_BINARY=$(CURDIR)/bin/weft $(GO) test -tags clients -timeout 10m -count 1 ./cmd/meshtest/clients/real

.PHONY: promise
promise: build ## One promise at its full count, into results/: make promise P=7 (minutes to hours), or one test: P=20 T=ChurnOfAgents
	WEFT_BINARY=$(CURDIR)/bin/weft ./cmd/meshtest/promise.sh '$(P)' '$(T)'

.PHONY: soak
soak: build ## The same with random seeds, every fuzz target, and a long run that must not grow (an hour; SOAK=10m for less)
	WEFT_BINARY=$(CURDIR)/bin/weft SOAK=$(or $(SOAK),60m) ./cmd/meshtest/soak.sh

.PHONY: audit
audit: ## Known vulnerabilities in what we depend on (needs the Internet)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@latest ./...

##@ Measure
.PHONY: bench
bench: build ## The control plane beside etcd, the data plane beside other proxies, and whether its targets are met (about 12 minutes, in a network namespace of its own for root; BENCH='-rounds 1 -window 1s' for a quick look)
	WEFT_BINARY=$(CURDIR)/bin/weft $(GO) run ./cmd/meshbench -window 1s control
	WEFT_BINARY=$(CURDIR)/bin/weft $(GO) run ./cmd/meshbench $(BENCH)

##@ Document
.PHONY: docs
docs: build ## Regenerate the reference pages from the code
	bin/weft docs website/content/reference

.PHONY: website
website: docs ## The documentation site into website/public (first time: builds Hugo, some minutes)
	cd website && CGO_ENABLED=0 $(GO) tool hugo --minify

.PHONY: website-serve
website-serve: docs ## The same, served on localhost and rebuilt on change
	cd website && CGO_ENABLED=0 $(GO) tool hugo server

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist website/public website/resources

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "; print "usage: make <target>"} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-zA-Z_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
