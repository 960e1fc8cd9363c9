{{- /*
SPDX-License-Identifier: Apache-2.0
Copyright The nix-builder-operator Authors
*/ -}}

{{- /* Arguments of the operator, as a YAML list. */ -}}
{{- define "nix-builder-operator.args" -}}
{{- $access := include "nix-builder-operator.metricsAccess" . -}}
- --leader-elect
- --health-probe-bind-address=:8081
{{- if eq $access "Nobody" }}
- --metrics-bind-address=0
{{- else }}
- --metrics-bind-address=:{{ .Values.metrics.port }}
{{- if eq $access "Anyone" }}
- --metrics-authorization=false
{{- end }}
{{- if .Values.metrics.certificateSecret }}
- --metrics-cert-dir=/etc/metrics-certificate
{{- end }}
{{- end }}
{{- with .Values.watchNamespaces }}
- --watch-namespaces={{ join "," . }}
{{- end }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- if not .Values.keptConnections }}
- --kept-connections=false
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
