{{- /*
SPDX-License-Identifier: Apache-2.0
Copyright The nix-builder-operator Authors
*/ -}}

{{- define "nix-builder-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Prefix of all object names: the release's name alone where it holds the chart's. */ -}}
{{- define "nix-builder-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Name with a suffix that survives truncation: (list $ "metrics"). */ -}}
{{- define "nix-builder-operator.nameFor" -}}
{{- $suffix := printf "-%s" (index . 1) }}
{{- $prefix := include "nix-builder-operator.fullname" (index . 0) }}
{{- printf "%s%s" ($prefix | trunc (sub 63 (len $suffix) | int) | trimSuffix "-") $suffix }}
{{- end }}

{{- define "nix-builder-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "nix-builder-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "nix-builder-operator.labels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{- include "nix-builder-operator.ownLabels" . }}
{{- end }}

{{- define "nix-builder-operator.ownLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "nix-builder-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "nix-builder-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "nix-builder-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "nix-builder-operator.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* Token, Anyone or Nobody. */ -}}
{{- define "nix-builder-operator.metricsAccess" -}}
{{- if ne .Values.metrics.access "Auto" }}
{{- .Values.metrics.access }}
{{- else if .Values.watchNamespaces }}
{{- "Nobody" }}
{{- else }}
{{- "Token" }}
{{- end }}
{{- end }}

{{- /* What the schema cannot say. Rendered by the Deployment, which is always there. */ -}}
{{- define "nix-builder-operator.validate" -}}
{{- if and .Values.metrics.serviceMonitor.enabled (eq (include "nix-builder-operator.metricsAccess" .) "Nobody") }}
{{- fail "metrics.serviceMonitor.enabled needs metrics to scrape, and they are off: set metrics.access to Token (adds a ClusterRole that may review tokens and nothing else) or to Anyone" }}
{{- end }}
{{- $reserved := include "nix-builder-operator.ownLabels" . | fromYaml }}
{{- range $where, $labels := dict "podLabels" .Values.podLabels "commonLabels" .Values.commonLabels }}
{{- range $key, $value := $labels }}
{{- if hasKey $reserved $key }}
{{- fail (printf "%s may not set %s: the chart sets it, and finds its pods by such labels" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
