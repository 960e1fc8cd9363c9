// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// credentials are what the parts of a cluster know each other by: a
// certificate for the API server, a token for each of its clients, and a key
// that signs the tokens of service accounts.
type credentials struct {
	authority []byte            // certificate that signed the API server's
	tokens    map[string]string // by user
}

// userAdmin may do everything.
const userAdmin = "admin"

// userOfNode is the user that a node's kubelet is.
func userOfNode(node string) string { return "system:node:" + node }

// writeCredentials makes new credentials, for so many nodes, and writes what
// the programs read of them into dir.
func writeCredentials(dir string, nodes int) (credentials, error) {
	made := credentials{tokens: map[string]string{}}
	groups := map[string]string{
		userAdmin:                        "system:masters",
		"system:kube-controller-manager": "", "system:kube-scheduler": "", "system:kube-proxy": "",
		"coredns": "system:masters",
	}
	for i := 1; i <= nodes; i++ {
		groups[userOfNode(nodeName(i))] = "system:nodes"
	}
	list := ""
	for user, group := range groups {
		var secret [16]byte
		if _, err := rand.Read(secret[:]); err != nil {
			return credentials{}, err
		}
		made.tokens[user] = hex.EncodeToString(secret[:])
		list += fmt.Sprintf("%s,%s,%s,%q\n", made.tokens[user], user, user, group)
	}
	if err := os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte(list), 0o600); err != nil {
		return credentials{}, err
	}
	signer, err := writeKey(filepath.Join(dir, "service-accounts.key"))
	if err != nil {
		return credentials{}, err
	}
	public, err := x509.MarshalPKIXPublicKey(&signer.PublicKey)
	if err != nil {
		return credentials{}, err
	}
	if err := writePEM(filepath.Join(dir, "service-accounts.pub"), "PUBLIC KEY", public); err != nil {
		return credentials{}, err
	}
	made.authority, err = writeServing(dir)
	return made, err
}

// writeServing makes an authority and the API server's certificate.
func writeServing(dir string) (authority []byte, err error) {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &authorityKey.PublicKey, authorityKey)
	if err != nil {
		return nil, err
	}
	if err := writePEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE", der); err != nil {
		return nil, err
	}
	key, err := writeKey(filepath.Join(dir, "apiserver.key"))
	if err != nil {
		return nil, err
	}
	serving := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP(nodeAddress(1)), net.ParseIP(apiServiceAddress), net.IPv4(127, 0, 0, 1)},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + domain},
	}
	if der, err = x509.CreateCertificate(rand.Reader, serving, ca, &key.PublicKey, authorityKey); err != nil {
		return nil, err
	}
	if err := writePEM(filepath.Join(dir, "apiserver.crt"), "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "ca.crt"))
}

func writeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
