{{- /* Made by hack/chart from config/rbac/role.yaml: do not edit. */ -}}
{{- define "nix-builder-operator.managerRules" -}}
- apiGroups:
  - ""
  resourceNames:
  - nix-machines
  resources:
  - configmaps
  verbs:
  - create
  - delete
  - get
  - list
  - patch
  - watch
- apiGroups:
  - ""
  resources:
  - secrets
  verbs:
  - get
- apiGroups:
  - events.k8s.io
  resources:
  - events
  verbs:
  - create
  - patch
- apiGroups:
  - nixbuilder.io
  resources:
  - nixbuilders
  verbs:
  - get
  - list
  - watch
- apiGroups:
  - nixbuilder.io
  resources:
  - nixbuilders/status
  verbs:
  - patch
{{- end }}
