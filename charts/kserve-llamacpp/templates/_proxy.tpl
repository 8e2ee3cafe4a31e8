{{/*
The proxy's settings as environment variables.
*/}}
{{- define "kserve-llamacpp.proxy.settings" -}}
{{- with include "kserve-llamacpp.proxy.upstreamUrl" . -}}
OPENAI_PROXY_UPSTREAM_URL: {{ . | quote }}
{{ else -}}
OPENAI_PROXY_WITHOUT_UPSTREAM: "true"
{{ end -}}
{{- range $name, $value := .Values.proxy.config -}}
{{- /* As JSON, since a whole number would be written with an exponent otherwise. */ -}}
{{- if not (kindIs "invalid" $value) -}}
OPENAI_PROXY_{{ upper $name }}: {{ (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
{{ end -}}
{{- end -}}
{{- end -}}
