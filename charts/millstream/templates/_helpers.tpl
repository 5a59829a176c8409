{{/* A Service is called so: at most 63 characters, no dots, a letter first. A release's name has at most 53, so that two of them never get one name. */}}
{{- define "millstream.name" -}}
{{- if regexMatch "^[0-9]" .Release.Name }}{{ fail (printf "release %s: a name that begins with a digit cannot be a Service's" .Release.Name) }}{{ end -}}
{{- $release := replace "." "-" .Release.Name -}}
{{- printf "%s%s-operator" $release (contains "millstream" $release | ternary "" "-millstream") | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* As the operator and `kubectl millstream` reckon it: the same for every release, because whoever asks knows the namespaces and no release. */}}
{{- define "millstream.leader" -}}
{{- printf "millstream-leader%s" (.Values.watchNamespace | empty | ternary "" (printf "-%s" .Values.watchNamespace)) | trunc 63 | trimAll "-" -}}
{{- end }}

{{- define "millstream.selected" -}}
app.kubernetes.io/name: millstream-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millstream.labels" -}}
{{ include "millstream.selected" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{- define "millstream.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "millstream.rules" -}}
- apiGroups: [ingestion.millstream.dev]
  resources: [ingestionpipelines, tenants]
  verbs: [get, list, watch]
# The finalizers of a pipeline whose topics go with it, and of a tenant whose data do; nothing else of them is written.
- apiGroups: [ingestion.millstream.dev]
  resources: [ingestionpipelines, tenants]
  verbs: [patch]
# Whether one of these goes because its namespace does.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [ingestion.millstream.dev]
  resources: [stagescales]
  verbs: [get, list, watch, create]
- apiGroups: [ingestion.millstream.dev]
  resources: [ingestionpipelines/status, stagescales/status, tenants/status]
  verbs: [patch]
# What a pipeline refers to. Of Secrets that no pipeline refers to, only names are read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch]
# A Pod that is stuck on a revision that never starts is deleted.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, delete]
# storage.persistentVolumeClaim.onLostNode: Recreate.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, delete]
# It goes with its pipeline.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create, patch]
# They are immutable.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, delete]
- apiGroups: [""]
  resources: [services]
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
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
