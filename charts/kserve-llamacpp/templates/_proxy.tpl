{{/*
The proxy's configuration file.
*/}}
{{- define "kserve-llamacpp.proxy.settings" -}}
{{- $settings := dict -}}
{{- if not .Values.proxy.config.upstreams -}}
{{- with include "kserve-llamacpp.proxy.upstreamUrl" . -}}
{{- $_ := set $settings "upstream_url" . -}}
{{- else -}}
{{- $_ := set $settings "without_upstream" true -}}
{{- end -}}
{{- end -}}
{{- /* New pods bring new settings: the old ones need not look. */ -}}
{{- if not .Values.proxy.reload -}}
{{- $_ := set $settings "config_poll_seconds" 0 -}}
{{- end -}}
{{- range $name, $value := .Values.proxy.config -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $settings $name $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
