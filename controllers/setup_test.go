// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/controllers/nixbuilder"
)

// namesOf is a registerer that notes the names of what is registered.
type namesOf struct{ names []string }

func (n *namesOf) Register(c prometheus.Collector) error {
	descriptions := make(chan *prometheus.Desc, 10)
	c.Describe(descriptions)
	close(descriptions)
	for description := range descriptions {
		n.names = append(n.names, regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(description.String())[1])
	}
	return nil
}

func (n *namesOf) MustRegister(...prometheus.Collector) {}
func (n *namesOf) Unregister(prometheus.Collector) bool { return false }

func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	registered := &namesOf{}
	if _, err := nixbuilder.NewMetrics(registered); err != nil {
		t.Fatal(err)
	}
	if _, err := machines.NewMetrics(registered); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(nixbuilders_\\w+)` ").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, row[1])
	}
	slices.Sort(documented)
	slices.Sort(registered.names)
	if diff := cmp.Diff(registered.names, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented):\n%s", diff)
	}
}

func TestCacheOptions(t *testing.T) {
	t.Parallel()
	if namespaces := CacheOptions(nil).DefaultNamespaces; namespaces != nil {
		t.Errorf("without namespaces only %v are watched", namespaces)
	}
	namespaces := CacheOptions([]string{"ci", "nightly"}).DefaultNamespaces
	if len(namespaces) != 2 {
		t.Errorf("%d namespaces are watched, want 2", len(namespaces))
	}
}
