# `make help` lists the targets. On a fresh Debian machine with Go, as root,
# `make demo` and `make test` install and build all that they need.

MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
IMAGE ?= nix-builder-operator:$(or $(VERSION),dev)
FUZZTIME ?= 10s
PLATFORMS ?= linux/amd64,linux/arm64
DIST ?= dist
CONTAINER_TOOL ?= docker
ENDPOINTS ?= 1000
DURATION ?= 10m
SEED ?= 2611
KILLS ?= 50
INTERVAL ?= 30s
SECTIONS ?= all
VERSIONS ?= all
RUNS ?= 0

# One set of build flags for everything that is not a test, so that the many
# packages that binaries, tools, vet and lint share are compiled once.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false
LDFLAGS := -s -w -X nixbuilder.io/nix-builder-operator/internal/version.version=$(VERSION)

# Directories that hold generated files: `verify` compares them.
GENERATED := api config charts docs

##@ General

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*##"; printf "usage: make TARGET\n"} \
		/^[a-z0-9-]+:.*##/ {printf "  %-18s %s\n", $$1, $$2} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)}' $(MAKEFILE_LIST)

.PHONY: prerequisites
prerequisites: ## Install the Debian packages that are missing (as root), or name them.
	@hack/prerequisites.sh

.PHONY: clean
clean: ## Remove what was built in this tree (caches elsewhere stay).
	rm -rf bin dist

##@ Code

.PHONY: generate
generate: ## Generate deep copies.
	hack/tool.sh controller-gen object:headerFile=hack/boilerplate.go.txt paths=./api/...

.PHONY: manifests
manifests: ## Generate CRDs and roles below config/.
	hack/tool.sh controller-gen crd paths=./api/... output:crd:dir=config/crd/bases
	hack/tool.sh controller-gen rbac:roleName=manager paths=./controllers/... output:rbac:dir=config/rbac

.PHONY: chart
chart: manifests ## Bring the Helm chart up to date with config/ and write its README.
	go run ./hack/chart
	hack/tool.sh helm-docs --chart-search-root charts --log-level warning

.PHONY: generated
generated: generate manifests chart ## All of the above.

.PHONY: troubleshooting
troubleshooting: prerequisites envtest rootfs ## Write docs/troubleshooting.md from what is said of real broken builders (as root).
	UPDATE_DOCS=1 go test -count=1 -timeout 30m -run '^TestCauses$$' ./test/diagnosis

.PHONY: fmt
fmt: ## Format the Go code.
	gofmt -w $$(git ls-files -co --exclude-standard '*.go')

.PHONY: build
build: ## Build all binaries into bin/.
	go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# The kubectl plugin runs where people are.
PLUGIN_PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: install-plugin
install-plugin: ## Install the kubectl plugin and its completion into PREFIX/bin.
	go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/kubectl-nixbuilder
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/kubectl-nixbuilder cmd/kubectl-nixbuilder/kubectl_complete-nixbuilder

.PHONY: plugin-archives
plugin-archives: ## Make archives of the kubectl plugin for PLUGIN_PLATFORMS in DIST.
	@for platform in $(PLUGIN_PLATFORMS); do \
		name=kubectl-nixbuilder_$${platform/\//_} dir=$$(mktemp -d); \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} hack/progress.sh $$name \
			go build -ldflags '$(LDFLAGS)' -o $$dir/ ./cmd/kubectl-nixbuilder; \
		cp cmd/kubectl-nixbuilder/kubectl_complete-nixbuilder LICENSE $$dir/; \
		mkdir -p $(DIST); \
		tar -C $$dir --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -czf $(DIST)/$$name.tar.gz .; \
		rm -r $$dir; \
	done

.PHONY: image
image: ## Make the container image for PLATFORMS in DIST, without a container engine; prints its digest.
	@cd hack/image && go build -o ../../bin/image .
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) hack/progress.sh 'building the image' \
		bin/image -version=$(or $(VERSION),dev) -name=$(IMAGE) -platforms=$(PLATFORMS) -out=$(DIST)

.PHONY: docker-image
docker-image: ## Build the same with Docker, for this machine's architecture.
	$(CONTAINER_TOOL) build --build-arg VERSION=$(VERSION) -t $(IMAGE) .

##@ Checks

.PHONY: verify
verify: ## Check that generated files are current.
	@hack/verify.sh $(GENERATED)

.PHONY: fmt-check
fmt-check: ## Check that the Go code is formatted.
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [[ $$unformatted ]]; then printf 'not formatted (run `make fmt`):\n%s\n' "$$unformatted" >&2; exit 1; fi

.PHONY: vet
vet: ## Run go vet.
	@hack/progress.sh vet go vet ./...

.PHONY: lint
lint: ## Run staticcheck.
	@hack/progress.sh staticcheck hack/tool.sh staticcheck ./...

##@ Tests

.PHONY: test
test: prerequisites envtest rootfs tools ## Run all tests; ends with one line of counts.
	@hack/test.sh all

.PHONY: test-unit
test-unit: ## Run the tests that need nothing but Go.
	@hack/test.sh unit

.PHONY: test-integration
test-integration: envtest tools ## Run the tests that need an API server or Helm.
	@hack/test.sh integration

.PHONY: test-e2e
test-e2e: prerequisites envtest rootfs ## Run the tests that need real Nix (as root).
	@hack/test.sh e2e

.PHONY: e2e
e2e: cluster-parts rootfs tools ## Run the tests that need a real cluster (as root; logs of what fails in bin/e2e).
	@hack/test.sh cluster

.PHONY: scale
scale: envtest ## Measure the operator with ENDPOINTS builders, at rest for DURATION (not part of test).
	go test -count=1 -v -timeout 0 ./test/scale -endpoints=$(ENDPOINTS) -duration=$(DURATION) -interval=$(INTERVAL)

.PHONY: chaos
chaos: prerequisites rootfs ## Builds for DURATION among faults of SEED, and KILLS builders killed; logs in bin/chaos (as root).
	go test -count=1 -v -timeout 0 ./test/chaos -duration=$(DURATION) -seed=$(SEED) -kills=$(KILLS) -logs=$(CURDIR)/bin/chaos -report=$(CURDIR)/bin/chaos/kills.json

.PHONY: bench
bench: prerequisites rootfs ## Measure the dispatcher: SECTIONS with the Nix of VERSIONS, RUNS times each (docs/performance.md).
	@hack/progress.sh 'building the benchmark' go build -o bin/bench ./test/bench
	@bin/bench -sections=$(SECTIONS) -versions=$(VERSIONS) -runs=$(RUNS) \
		$(addprefix -chaos-report=,$(wildcard bin/chaos/kills.json))

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME.
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: envtest
envtest: ## Build Kubernetes (etcd, API server and the rest) unless cached; prints where it is.
	@hack/kubernetes/build.sh

.PHONY: cluster-parts
cluster-parts: prerequisites envtest ## Build what nodes need besides unless cached; prints where it is.
	@hack/node/build.sh

.PHONY: tools
tools: ## Build the tools that tests use unless cached.
	@for tool in gotestsum helm kustomize; do hack/tool.sh --path $$tool >/dev/null; done

.PHONY: rootfs
rootfs: prerequisites ## Unpack the Debian systems with Nix unless cached; prints where they are.
	@hack/progress.sh 'root file systems with Nix' go run ./test/nixlab/cmd/nixlab -rootfs

##@ Try it

.PHONY: demo
demo: prerequisites envtest rootfs ## Real builders, operator, dispatcher and build on this machine (KEEP=1 leaves it running).
	@hack/progress.sh 'building the demo' go build -o bin/demo ./hack/demo
	@bin/demo

# The image as the chart names it by default.
.PHONY: cluster-image
cluster-image:
	@$(MAKE) image DIST=bin/cluster-image PLATFORMS=linux/$$(go env GOARCH) \
		IMAGE=nix-builder-operator:$$(sed -n 's/^appVersion: //p' charts/nix-builder-operator/Chart.yaml)

.PHONY: cluster
cluster: cluster-parts rootfs cluster-image ## A real cluster on this machine with two Nix builders (as root; docs/contributing/cluster.md).
	@hack/progress.sh 'building the cluster command' go build -o bin/cluster ./test/cluster/cmd/cluster
	@helm=$$(hack/tool.sh --path helm) && bin/cluster up -image=bin/cluster-image/image.tar -path="$$(dirname "$$helm")"

.PHONY: cluster-shell
cluster-shell: ## A shell on its first node, with kubectl, helm and ctr.
	@bin/cluster shell

.PHONY: cluster-node
cluster-node: ## Add a node to it.
	@bin/cluster node

.PHONY: cluster-down
cluster-down: ## Stop it and remove all of it.
	@bin/cluster down
