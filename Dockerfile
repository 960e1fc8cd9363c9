# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors

# One image for operator, dispatcher and connect helper: three static programs
# and nothing to run besides them. `make docker-image` builds it. `make image`
# makes the same without a container engine (hack/image); a test compares both.

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY api/ api/
COPY cmd/ cmd/
COPY controllers/ controllers/
COPY internal/ internal/
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
ENV CGO_ENABLED=0
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X nixbuilder.io/nix-builder-operator/internal/version.version=$VERSION" \
    -o /out/ ./cmd/manager ./cmd/nix-dispatcher ./cmd/nix-dispatch-connect

FROM scratch
ARG VERSION
LABEL org.opencontainers.image.title="nix-builder-operator" \
      org.opencontainers.image.description="Operator, dispatcher and connect helper for Nix remote builders in Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --chmod=0644 hack/image/passwd hack/image/group /etc/
COPY --from=build /out/ /
ENV PATH=/
WORKDIR /
# A number, so that the kubelet can tell that it is not root.
USER 65532:65532
ENTRYPOINT ["/manager"]
