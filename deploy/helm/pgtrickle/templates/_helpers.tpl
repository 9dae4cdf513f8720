{{- define "pgtrickle.name" -}}
{{- if contains "pgtrickle" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-pgtrickle" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "pgtrickle.selector" -}}
app.kubernetes.io/name: pgtrickle
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pgtrickle.labels" -}}
{{ include "pgtrickle.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pgtrickle.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "pgtrickle.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pgtrickle.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A probe: by HTTP where others can reach the port, else by the program in its container. */}}
{{- define "pgtrickle.probe" -}}
{{- if .root.Values.http.tokenSecret.name -}}
httpGet:
  path: {{ .path }}
  port: http
  {{- if .root.Values.http.tlsSecret }}
  scheme: HTTPS
  {{- end }}
{{- else -}}
exec:
  command: [/usr/bin/pgtrickle, healthcheck{{ if eq .path "/readyz" }}, --ready{{ end }}]
{{- end -}}
{{- end -}}

{{/* One key of a secret as a file that the program's user may read. */}}
{{- define "pgtrickle.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret.name }}
    defaultMode: 0440
    items:
      - key: {{ .secret.key }}
        path: {{ .secret.key }}
{{- end -}}
