#!/usr/bin/env bash
# usage: test.sh all|unit|integration|e2e|cluster
# Runs those tests with the race detector, uncached: many of them depend on
# programs that Go's test cache does not know. Ends with a line of counts; the
# full log is bin/test.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The race detector needs cgo. Flags are those of a plain `go test -race`, so
# that it and this script share compiled packages.
export CGO_ENABLED=1 GOFLAGS=-buildvcs=false

list() { go list ./... | grep -E "$@" || true; }
case ${1:-} in
# test/scale measures and takes its time: make scale. So do those with a real
# cluster: make e2e.
all) packages=$(list -v '/test/(scale|cluster|e2e/cluster)(/|$)') ;;
unit) packages=$(list -v '/test/(chart|envtest|image|integration|nixlab|e2e|chaos|diagnosis|bench|scale|cluster)(/|$)') ;;
integration) packages=$(list '/test/(chart|envtest|image|integration)(/|$)') ;;
e2e) packages=$(list '/test/(nixlab|e2e|chaos|diagnosis|bench)(/|$)' | grep -v '/test/e2e/cluster$') ;;
cluster) packages=$(list '/test/(cluster|e2e/cluster)(/|$)') ;;
*)
	sed -n '2s/^# //p' "${BASH_SOURCE[0]}" >&2
	exit 2
	;;
esac

if [[ -z $packages ]]; then
	echo "there are no $1 tests" >&2
	exit 1
fi

KUBEBUILDER_ASSETS=$(hack/kubernetes/build.sh --where)
export KUBEBUILDER_ASSETS

mkdir -p bin
rm -f bin/test.json
# shellcheck disable=SC2086 # one word for each package
hack/progress.sh testing hack/tool.sh gotestsum --format pkgname --hide-summary skipped --jsonfile bin/test.json -- \
	-race -count=1 -timeout 30m $packages && status=0 || status=$?
CGO_ENABLED=0 go build -trimpath -o bin/ ./hack/testcounts
bin/testcounts bin/test.json || status=1
exit "$status"
