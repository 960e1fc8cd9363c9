# On the Mac, as root (sudo sh). It has Nix with its daemon. Running this again does no
# harm.
set -eu

# append LINE FILE adds a line to a file that lacks it.
append() {
	touch "$2"
	grep -qxF "$1" "$2" && return
	[ -z "$(tail -c 1 "$2")" ] || echo >>"$2"
	echo "$1" >>"$2"
}

# Remote login. If this is refused, turn it on in System Settings, General, Sharing.
systemsetup -setremotelogin on
{{if ne .User "root"}}
# The account, with a password that nobody knows.
if ! id {{.User}} >/dev/null 2>&1; then
	sysadminctl -addUser {{.User}} -fullName 'Nix builds' -shell /bin/zsh -home /Users/{{.User}} -password "$(openssl rand -base64 32)"
	createhomedir -c -u {{.User}} >/dev/null
	dscl . -create /Users/{{.User}} IsHidden 1
fi
dseditgroup -o edit -a {{.User}} -t user com.apple.access_ssh 2>/dev/null || true
{{end}}
# The key of operator and dispatchers. It may run commands and forward nothing.
install -d -m 700 -o {{.User}} ~{{.User}}/.ssh
key='{{.AuthorizedKey}}'
keys=~{{.User}}/.ssh/authorized_keys
append "$key" "$keys"
chown {{.User}} "$keys"
chmod 600 "$keys"
{{if ne .User "root"}}
# Nix takes builds of derivations from trusted users only. That is as good as root on
# this Mac. With nix-darwin set nix.settings.trusted-users instead.
line='{{.NixConf}}'
append "$line" /etc/nix/nix.conf
launchctl kickstart -k system/org.nixos.nix-daemon
{{end}}
# sshd: builds whose client is gone end within a minute, and many clients may connect
# at the same moment.
install -d /etc/ssh/sshd_config.d
cat >/etc/ssh/sshd_config.d/010-nix-builder.conf <<'END'
{{.SSHDConfig}}END

# A Mac that sleeps does not build.
pmset -a sleep 0

# What the NixBuilder has to say.
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
