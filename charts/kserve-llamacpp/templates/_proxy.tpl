{{/*
The proxy's configuration file.
*/}}
{{- define "kserve-llamacpp.proxy.settings" -}}
{{- $settings := dict -}}
{{- if not .Values.proxy.config.upstreams -}}
{{- with include "kserve-llamacpp.proxy.upstreamUrl" . -}}
{{- $_ := set $settings "upstream_url" . -}}
{{- /* The release's own predictor may tell clients apart by their keys' hashes; others need not. */ -}}
{{- if include "kserve-llamacpp.proxy.model" $ -}}
{{- $_ := set $settings "upstream_headers" (dict "tenant_from_key" true) -}}
{{- end -}}
{{- else -}}
{{- $_ := set $settings "without_upstream" true -}}
{{- end -}}
{{- end -}}
{{- if .Values.proxy.tls.secretName -}}
{{- $_ := set $settings "tls_cert_file" "/etc/openai-proxy-tls/tls.crt" -}}
{{- $_ := set $settings "tls_key_file" "/etc/openai-proxy-tls/tls.key" -}}
{{- end -}}
{{- if .Values.proxy.tls.clientCASecretName -}}
{{- $_ := set $settings "tls_client_ca_file" "/etc/openai-proxy-clients/ca.crt" -}}
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

{{/*
A probe of the proxy, by HTTPS where that is spoken: list $ PROBE.
*/}}
{{- define "kserve-llamacpp.proxy.probe" -}}
{{- $probe := deepCopy (index . 1) -}}
{{- if and (index . 0).Values.proxy.tls.secretName $probe.httpGet -}}
{{- $_ := set $probe.httpGet "scheme" "HTTPS" -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}
