# In the cluster{{if .MakeKey}}, with the key made by
#   ssh-keygen -t ed25519 -N '' -f {{.PrivateKey}}{{end}}
kubectl{{.N}} create secret generic {{.Secret}} --type=kubernetes.io/ssh-auth --from-file=ssh-privatekey={{.PrivateKey}}
kubectl{{.N}} label secret {{.Secret}} nixbuilder.io/credential=true
kubectl{{.N}} apply -f - <<'END'
apiVersion: nixbuilder.io/v1alpha1
kind: NixBuilder
metadata:
  name: "{{.Name}}"
spec:
  user: "{{.User}}"
  credentials:
    secretRefs:
      - name: "{{.Secret}}"
{{- if .RemoteProgram}}
  remoteProgram: {{.RemoteProgram}}
{{- end}}
{{- if .Systems}}
  systems:
{{- range .Systems}}
    - "{{.}}"
{{- end}}
{{- end}}
  endpoints:
    - name: "{{.Endpoint}}"
      host: "{{.Host}}"
{{- if .Port}}
      port: {{.Port}}
{{- end}}
      hostKeys:
        - {{.HostKey}}
END
kubectl nixbuilder{{.N}} doctor {{.Name}}
