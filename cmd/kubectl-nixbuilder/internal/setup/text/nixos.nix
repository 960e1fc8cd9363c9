# A NixOS module for the machine: save it as nix-builder.nix, add it to imports of
# configuration.nix, and run nixos-rebuild switch. The host key is then
# cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub
{
  users.users.{{.NixUser}} = {
{{- if ne .User "root"}}
    isSystemUser = true;
    group = "{{.User}}";
    useDefaultShell = true;
{{- end}}
    # The key of operator and dispatchers. It may run commands and forward nothing.
    openssh.authorizedKeys.keys = [
      ''{{.AuthorizedKey}}''
    ];
  };
{{- if ne .User "root"}}
  users.groups.{{.NixUser}} = { };

  # Nix takes builds of derivations from trusted users only. That is as good as root
  # on this machine.
  nix.settings.trusted-users = [ "{{.User}}" ];
{{- end}}

  # Builds whose client is gone end within a minute, and many clients may connect at
  # the same moment.
  services.openssh = {
    enable = true;
    settings = {
{{- range .SSHD}}
      {{.Name}} = {{.NixValue}};
{{- end}}
    };
  };
}
