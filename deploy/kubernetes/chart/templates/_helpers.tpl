{{- define "wardround.name" -}}
{{ .Release.Name }}-{{ .Values.side }}
{{- end }}

{{- define "wardround.labels" -}}
app.kubernetes.io/name: wardround
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.side }}
{{- end }}

{{- define "wardround.program" -}}
{{ ternary "server" "client" (eq .Values.side "coordinator") }}
{{- end }}

{{- define "wardround.image" -}}
{{ .Values.image.repository }}/wardround-{{ include "wardround.program" . }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "wardround.health" -}}
{{ ternary "server.coordinator.health" "client.agent.health" (eq .Values.side "coordinator") }}
{{- end }}

{{/* What the container of the side and that of its dashboard have in common. */}}
{{- define "wardround.container" -}}
image: {{ include "wardround.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
env:
{{- if .Values.passphraseSecret }}
  - name: WARDROUND_{{ .Values.side | upper }}_PASSPHRASE_FILE
    value: /run/secrets/wardround/passphrase
{{- end }}
{{- if and (eq .Values.side "site") .Values.site.proxy }}
  - name: https_proxy
    value: {{ .Values.site.proxy }}
{{- end }}
  - name: TZ
    value: UTC
volumeMounts:
  - name: home
    mountPath: /var/lib/wardround
  - name: tmp
    mountPath: /tmp
{{- if .Values.passphraseSecret }}
  - name: passphrase
    mountPath: /run/secrets/wardround
    readOnly: true
{{- end }}
{{- end }}
