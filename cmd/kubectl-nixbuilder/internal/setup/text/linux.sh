# On the machine, as root. It has Nix with its daemon, and sshd. Running this again
# does no harm.
set -eu

# append LINE FILE adds a line to a file that lacks it.
append() {
	touch "$2"
	grep -qxF "$1" "$2" && return
	[ -z "$(tail -c 1 "$2")" ] || echo >>"$2"
	echo "$1" >>"$2"
}
{{if ne .User "root"}}
# The account. "*" is no password and, unlike "!", does not lock out keys.
id {{.User}} >/dev/null 2>&1 || useradd --system --create-home --home-dir /var/lib/{{.User}} --shell /bin/sh {{.User}}
usermod --password '*' {{.User}}
{{end}}
# The key of operator and dispatchers. It may run commands and forward nothing.
install -d -m 700 -o {{.User}} -g "$(id -g {{.User}})" ~{{.User}}/.ssh
key='{{.AuthorizedKey}}'
keys=~{{.User}}/.ssh/authorized_keys
append "$key" "$keys"
chown {{.User}} "$keys"
chmod 600 "$keys"
{{if ne .User "root"}}
# Nix takes builds of derivations from trusted users only. That is as good as root
# on this machine.
line='{{.NixConf}}'
append "$line" /etc/nix/nix.conf
systemctl restart nix-daemon.service || echo 'restart nix-daemon, so that it reads its nix.conf' >&2
{{end}}
# sshd: builds whose client is gone end within a minute, and many clients may connect
# at the same moment.
install -d /etc/ssh/sshd_config.d
cat >/etc/ssh/sshd_config.d/10-nix-builder.conf <<'END'
{{.SSHDConfig}}END
grep -q '^Include /etc/ssh/sshd_config.d/' /etc/ssh/sshd_config || echo 'let /etc/ssh/sshd_config begin with: Include /etc/ssh/sshd_config.d/*.conf' >&2
systemctl reload ssh.service 2>/dev/null || systemctl reload sshd.service || echo 'reload sshd' >&2

# What the NixBuilder has to say.
found=no
for dir in /usr/local/bin /usr/bin /bin; do
	if [ -x $dir/nix-daemon ]; then found=yes; fi
done
if [ $found = no ]; then
	echo 'remoteProgram: /nix/var/nix/profiles/default/bin/nix-daemon'
fi
host_key=
for type in ed25519 ecdsa rsa; do
	file=/etc/ssh/ssh_host_${type}_key.pub
	if [ -z "$host_key" ] && [ -s "$file" ]; then host_key=$(cut -d ' ' -f 1,2 "$file"); fi
done
if [ -z "$host_key" ]; then
	echo 'there is no host key in /etc/ssh: make some (ssh-keygen -A), restart sshd, and run this again' >&2
	exit 1
fi
echo "hostKeys: $host_key"
