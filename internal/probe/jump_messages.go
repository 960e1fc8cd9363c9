// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Messages about what is between the operator and a machine behind a jump host. Every
// message names the jump host already, beside the machine.

// behind names the jump host after an address, where there is one.
func (t *Target) behind() string {
	if t.Jump == nil {
		return ""
	}
	return " behind " + t.Jump.Address()
}

func messageJump(r *report, reason Reason, e *sshconn.Error) string {
	t := r.target
	switch reason {
	case ReasonJumpHostKey:
		return t.says("%s", jumpKeyWords(t, e))
	case ReasonJumpLoginRefused, ReasonJumpLoginFailed:
		return t.says("%s", jumpLoginWords(r, e))
	default:
		return t.says("%s", jumpReachWords(t, e))
	}
}

func jumpReachWords(t *Target, e *sshconn.Error) string {
	switch e.Kind {
	case sshconn.KindNameUnknown:
		return fmt.Sprintf("the host name %q of the jump host does not exist; correct spec.proxyJump.host, or the cluster's DNS", t.Jump.Host)
	case sshconn.KindNameLookup:
		return fmt.Sprintf("the name server gives no answer for the jump host %q; look at the cluster's DNS", t.Jump.Host)
	case sshconn.KindDenied:
		return "the jump host's " + e.Detail + ", which the operator is told not to connect to; use another address, or change the operator's --denied-ranges"
	case sshconn.KindRefused:
		return "the jump host refuses the connection: nothing listens there; start sshd on it, or correct spec.proxyJump.port"
	case sshconn.KindUnreachable:
		return "there is no route to the jump host; look at the network between the cluster and it"
	case sshconn.KindSilent, sshconn.KindStalled:
		return fmt.Sprintf("the jump host takes the connection, but no SSH server speaks there within %s; correct host and port in spec.proxyJump, or look at its console", t.Timeout)
	case sshconn.KindNotSSH:
		return fmt.Sprintf("something else than an SSH server answers as the jump host: %s; correct host and port in spec.proxyJump", quoted(e.Detail, "bytes that are no text"))
	case sshconn.KindTurnedAway:
		return fmt.Sprintf("the jump host's sshd closes the connection before greeting (%s): too many connections at once (MaxStartups in its sshd_config), or a penalty for this source address (PerSourcePenalties) after refused logins", quoted(e.Detail, "without a word"))
	case sshconn.KindNoCommonAlgorithm:
		return fmt.Sprintf("the jump host offers no %s algorithm that is considered safe; update it, or allow one in its sshd_config", e.Detail)
	case sshconn.KindTimeout:
		if e.Step == sshconn.StepConnect {
			return fmt.Sprintf("no answer from the jump host within %s: it is off, or a firewall drops the connection", t.Timeout)
		}
		return fmt.Sprintf("the jump host greets, but does not finish the key exchange within %s: it is overloaded, or packets are lost (look at the MTU)", t.Timeout)
	default:
		return fmt.Sprintf("the connection to the jump host breaks off: %s; look at the log of its sshd", quoted(e.Detail, "connection closed"))
	}
}

func jumpKeyWords(t *Target, e *sshconn.Error) string {
	seen, remedy := unseen, "put its key into spec.proxyJump.hostKeys"
	if e.Seen != nil {
		seen = sshconn.Fingerprint(e.Seen)
		remedy += ": " + sshconn.AuthorizedKey(sshconn.PlainKey(e.Seen))
	}
	expected := strings.Join(e.Expected, " or ")
	switch e.Kind {
	case sshconn.KindHostKeyType:
		if expected == "" {
			return fmt.Sprintf("the jump host presents no certificate (it offers %s), as spec.proxyJump.hostCertificateAuthorities demands; sign one for it, or %s",
				quoted(e.Detail, "nothing"), remedy)
		}
		return fmt.Sprintf("the jump host has no key of the expected type (expected %s, seen %s; it offers %s); if that is what \"ssh-keygen -lf\" prints there, %s",
			expected, seen, quoted(e.Detail, "nothing"), remedy)
	case sshconn.KindHostCertificateAuthority:
		return fmt.Sprintf("the jump host's certificate (key %s) is %s, which is not among spec.proxyJump.hostCertificateAuthorities (%s)", seen, e.Detail, expected)
	case sshconn.KindHostCertificatePrincipal:
		return fmt.Sprintf("the jump host's certificate (key %s) is for %s, not for %q; sign it with \"ssh-keygen -h -n %s …\"", seen, quoted(e.Detail, "nobody"), t.Jump.Host, t.Jump.Host)
	case sshconn.KindHostCertificateExpired:
		return fmt.Sprintf("the jump host's certificate (key %s) expired at %s; sign a new one and restart sshd there", seen, e.Detail)
	case sshconn.KindHostCertificateEarly:
		return fmt.Sprintf("the jump host's certificate (key %s) is not valid before %s; look at the clocks of signer and operator", seen, e.Detail)
	case sshconn.KindHostCertificateInvalid:
		return fmt.Sprintf("the jump host's certificate (key %s) is not usable: %s; sign a new one and restart sshd there", seen, quoted(e.Detail, "its signature is wrong, or it has options that are not known"))
	case sshconn.KindHostKeyUnknown:
		return "no host key is given for the jump host; compare the one that it presents, " + seen + ", with its own, and " + remedy
	default:
		return fmt.Sprintf("HOST KEY OF THE JUMP HOST CHANGED: seen %s, expected %s. If it was reinstalled, %s; otherwise somebody may be in between. It is not logged in to until then",
			seen, expected, remedy)
	}
}

func jumpLoginWords(r *report, e *sshconn.Error) string {
	user, tried := r.target.Jump.User, keysOf(r.hop.keys.names)
	switch {
	case e.Kind == sshconn.KindAuthRefused:
		line := "its public key"
		if len(r.hop.keys.list) > 0 {
			if key := sshconn.AuthorizedKey(sshconn.PlainKey(r.hop.keys.list[0].PublicKey())); len(key) <= maxKeyLine {
				line = "\"restrict,port-forwarding " + key + "\""
			}
		}
		return fmt.Sprintf("the jump host refuses the login as %s with %s%s; add %s to ~%s/.ssh/authorized_keys there, or correct spec.proxyJump.user; where both are right, the log of its sshd says why",
			user, tried, parenthesis(e.Detail), line, user)
	case e.Kind == sshconn.KindNoUsableKey:
		return tried + " could not sign the login to the jump host; store a key in it that can"
	case e.Kind == sshconn.KindTimeout:
		return fmt.Sprintf("the jump host does not answer the login as %s within %s; look at the log of its sshd (name lookups, PAM, a full disk)", user, r.target.Timeout)
	default:
		return fmt.Sprintf("the jump host's sshd breaks off the login as %s%s; look at MaxStartups, PerSourcePenalties and MaxAuthTries in its sshd_config, and at its log", user, parenthesis(e.Detail))
	}
}

// messageForward is about what the jump host says of connecting to the machine.
func messageForward(t *Target, reason Reason, e *sshconn.Error) string {
	switch reason {
	case ReasonJumpForwarding:
		return t.says("the jump host does not pass connections on to %s (it says %s); allow it in its sshd_config (AllowTcpForwarding local, PermitOpen %s) and in the key's line in authorized_keys (restrict,port-forwarding,permitopen=\"%s\")",
			t.Address(), quoted(e.Detail, "nothing"), t.Address(), t.Address())
	case ReasonNameUnknown:
		return t.says("the jump host, where names of machines are looked up, does not know %q (it says %s); correct spec.endpoints[].host, or its DNS", t.Host, quoted(e.Detail, "nothing"))
	case ReasonNameLookupFailed:
		return t.says("the jump host, where names of machines are looked up, gets no answer for %q (it says %s); look at its DNS", t.Host, quoted(e.Detail, "nothing"))
	case ReasonConnectionRefused:
		return t.says("the machine refuses the jump host's connection: nothing listens there; start sshd on the machine, or correct spec.endpoints[].port")
	case ReasonConnectTimeout:
		return t.says("the jump host gets no answer from the machine within %s: the machine is off, or a firewall between the two drops the connection", t.Timeout)
	default:
		return t.says("the jump host cannot connect to the machine (it says %s); look at the network between the two", quoted(e.Detail, "nothing"))
	}
}
