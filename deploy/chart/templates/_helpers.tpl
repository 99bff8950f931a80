{{/* The labels of all objects. */}}
{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/component: service-proxy
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The image: a digest takes precedence over a tag. */}}
{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The labels of the values, if there are any. */}}
{{- define "sluice.more-labels" -}}
{{- with .Values.labels }}
  labels:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}
