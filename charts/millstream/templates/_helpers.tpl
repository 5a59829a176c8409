{{- define "millstream.name" -}}
{{- if contains "millstream" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-millstream{{ end }}-operator
{{- end }}

{{- define "millstream.selected" -}}
app.kubernetes.io/name: millstream-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millstream.labels" -}}
{{ include "millstream.selected" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "millstream.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "millstream.rules" -}}
- apiGroups: [ingestion.millstream.dev]
  resources: [ingestionpipelines, tenants]
  verbs: [get, list, watch]
- apiGroups: [ingestion.millstream.dev]
  resources: [stagescales]
  verbs: [get, list, watch, create]
- apiGroups: [ingestion.millstream.dev]
  resources: [ingestionpipelines/status, stagescales/status, tenants/status]
  verbs: [get, patch]
# What a pipeline refers to. Of Secrets that no pipeline refers to, only names are read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [serviceaccounts, configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
