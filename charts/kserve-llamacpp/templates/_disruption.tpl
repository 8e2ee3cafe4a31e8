{{/*
How many pods may be missing: BUDGET.
*/}}
{{- define "kserve-llamacpp.disruption" -}}
{{- if kindIs "invalid" .minAvailable -}}
maxUnavailable: {{ .maxUnavailable }}
{{- else -}}
minAvailable: {{ .minAvailable }}
{{- end -}}
{{- end -}}
