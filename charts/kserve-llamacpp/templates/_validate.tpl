{{- define "kserve-llamacpp.validate" -}}
{{- $models := fromJson (include "kserve-llamacpp.models" .) -}}
{{- if not (or .Values.proxy.enabled $models) -}}
{{- fail "proxy.enabled is false and models is empty: nothing would be installed. Give one of them." -}}
{{- end -}}
{{- include "kserve-llamacpp.validate.labels" (list "commonLabels" .Values.commonLabels) -}}
{{- if .Values.proxy.enabled -}}
{{- include "kserve-llamacpp.validate.upstream" (list . $models) -}}
{{- include "kserve-llamacpp.validate.proxy" .Values.proxy -}}
{{- end -}}
{{- range $name, $model := $models -}}
{{- $place := printf "models.%s" $name -}}
{{- if eq $name (include "kserve-llamacpp.proxy.name" $) -}}
{{- fail (printf "%s has the proxy's own name: rename the model, or set fullnameOverride." $place) -}}
{{- end -}}
{{- if hasKey $models (printf "%s-pods" $name) -}}
{{- fail (printf "%s-pods has the name of the Service on the pods of %s: rename one of them." $place $place) -}}
{{- end -}}
{{- include "kserve-llamacpp.validate.labels" (list (printf "%s.podLabels" $place) $model.podLabels) -}}
{{- include "kserve-llamacpp.validate.source" (list $place $model) -}}
{{- include "kserve-llamacpp.validate.scaling" (list $place $model) -}}
{{- include "kserve-llamacpp.validate.budget" (list $place $model.podDisruptionBudget) -}}
{{- if and $model.isKnative (not (kindIs "invalid" $model.terminationGracePeriodSeconds)) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is not for Knative mode: set timeoutSeconds instead." $place) -}}
{{- end -}}
{{- if and $model.isKnative $model.grpc.enabled -}}
{{- fail (printf "%s.grpc.enabled is not for Knative mode, in which a pod has one port: leave it out." $place) -}}
{{- end -}}
{{- if and $model.isKnative $model.tls.secretName -}}
{{- fail (printf "%s.tls.secretName is not for Knative mode, whose queue-proxy speaks HTTP with the predictor: leave it out." $place) -}}
{{- end -}}
{{- if and $model.isKServe (not $model.runtime.create) $model.tls.secretName -}}
{{- fail (printf "%s.tls.secretName needs a runtime that mounts it: set %s.runtime.create to true." $place $place) -}}
{{- end -}}
{{- if and $.Values.proxy.enabled (eq $name (include "kserve-llamacpp.proxy.model" $)) $model.tls.secretName (not $.Values.proxy.config.upstream_tls) -}}
{{- fail (printf "%s.tls.secretName is set, but the proxy does not know its authority: set proxy.config.upstream_tls, with a ca_file from proxy.extraVolumes." $place) -}}
{{- end -}}
{{- include "kserve-llamacpp.validate.drain" (list $place $model.terminationGracePeriodSeconds $model.drainDelaySeconds $model.graceSeconds (printf "%s.drainDelaySeconds and graceSeconds" $place)) -}}
{{- include "kserve-llamacpp.validate.args" (list $place $model.args) -}}
{{- end -}}
{{- end -}}

{{/*
Requests go to one place: list $ MODELS.
*/}}
{{- define "kserve-llamacpp.validate.upstream" -}}
{{- $proxy := (index . 0).Values.proxy -}}
{{- $names := keys (index . 1) | sortAlpha -}}
{{- if and $proxy.model $proxy.upstreamUrl -}}
{{- fail "proxy.model and proxy.upstreamUrl are both set, and requests go to one place: keep one of them." -}}
{{- end -}}
{{- if and (or $proxy.model $proxy.upstreamUrl) $proxy.config.upstreams -}}
{{- fail "proxy.config.upstreams says where requests go, and so do proxy.model and proxy.upstreamUrl: keep one of them." -}}
{{- end -}}
{{- $model := include "kserve-llamacpp.proxy.model" (index . 0) -}}
{{- with get (index . 1) $model -}}
{{- $interval := ternary $proxy.config.probe_interval_seconds 2 (hasKey $proxy.config "probe_interval_seconds") -}}
{{- if and .isKnative .autoscaling.enabled (eq (int .autoscaling.minReplicas) 0) (ne (float64 $interval) 0.0) -}}
{{- fail (printf "models.%s.autoscaling.minReplicas is 0, but the proxy looks at its model every %v s, which keeps a pod running: set proxy.config.probe_interval_seconds to 0, or minReplicas to 1." $model $interval) -}}
{{- end -}}
{{- end -}}
{{- if and (not $model) (not $proxy.upstreamUrl) (not $proxy.config.upstreams) (hasKey $proxy.config "probe_interval_seconds") (eq (float64 $proxy.config.probe_interval_seconds) 0.0) -}}
{{- fail "proxy.config.probe_interval_seconds is 0, but there is no model to leave alone: leave it out." -}}
{{- end -}}
{{- if and (gt (len $names) 1) (not $proxy.model) (not $proxy.upstreamUrl) (not $proxy.config.upstreams) -}}
{{- fail (printf "There are several models (%s), and the proxy's requests go to one: set proxy.model to its name, or proxy.upstreamUrl." (join ", " $names)) -}}
{{- end -}}
{{- end -}}

{{- define "kserve-llamacpp.validate.proxy" -}}
{{- if and .autoscaling.enabled (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- fail (printf "proxy.autoscaling.minReplicas is %d and maxReplicas %d: raise maxReplicas." (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and .autoscaling.enabled (not .autoscaling.targetCPUUtilizationPercentage) (not .autoscaling.metrics) -}}
{{- fail "proxy.autoscaling has nothing to scale by: set targetCPUUtilizationPercentage or metrics." -}}
{{- end -}}
{{- if and .ingress.enabled (not .ingress.hosts) -}}
{{- fail "proxy.ingress.hosts is empty: give the host names that lead to the proxy." -}}
{{- end -}}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) -}}
{{- fail "proxy.httpRoute.parentRefs is empty: name the gateway that the route is attached to." -}}
{{- end -}}
{{- if and .tls.clientCASecretName (not .tls.secretName) -}}
{{- fail "proxy.tls.clientCASecretName is set, but proxy.tls.secretName is not: certificates of clients need HTTPS." -}}
{{- end -}}
{{- if and .service.nodePort (eq .service.type "ClusterIP") -}}
{{- fail "proxy.service.nodePort is set and proxy.service.type is ClusterIP: set the type to NodePort." -}}
{{- end -}}
{{- $instead := dict "OPENAI_PROXY_DRAIN_DELAY_SECONDS" "proxy.config.drain_delay_seconds" "OPENAI_PROXY_GRACE_SECONDS" "proxy.config.grace_seconds" "OPENAI_PROXY_UPSTREAM_URL" "proxy.upstreamUrl" "OPENAI_PROXY_UPSTREAMS" "proxy.config.upstreams" "OPENAI_PROXY_PORT" "proxy.service.port" "OPENAI_PROXY_CONFIG" "proxy.config" "OPENAI_PROXY_TLS_CERT_FILE" "proxy.tls.secretName" "OPENAI_PROXY_TLS_KEY_FILE" "proxy.tls.secretName" "OPENAI_PROXY_TLS_CLIENT_CA_FILE" "proxy.tls.clientCASecretName" -}}
{{- range .env -}}
{{- if hasKey $instead .name -}}
{{- fail (printf "proxy.env has %s, which the chart has to know: use %s instead." .name (get $instead .name)) -}}
{{- end -}}
{{- end -}}
{{- if hasKey .podAnnotations "checksum/config" -}}
{{- fail "proxy.podAnnotations has checksum/config, by which a changed setting rolls the pods: leave it out." -}}
{{- end -}}
{{- include "kserve-llamacpp.validate.labels" (list "proxy.podLabels" .podLabels) -}}
{{- include "kserve-llamacpp.validate.budget" (list "proxy" .podDisruptionBudget) -}}
{{- include "kserve-llamacpp.validate.drain" (list "proxy" .terminationGracePeriodSeconds .config.drain_delay_seconds .config.grace_seconds "proxy.config.drain_delay_seconds and grace_seconds") -}}
{{- end -}}

{{/*
Labels by which the chart finds its objects are its own: list PLACE LABELS.
*/}}
{{- define "kserve-llamacpp.validate.labels" -}}
{{- $own := list "helm.sh/chart" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" -}}
{{- range $key, $_ := index . 1 -}}
{{- if has $key $own -}}
{{- fail (printf "%s has %s, which the chart sets itself: leave it out." (index $ 0) $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
A pod has the time to drain: list PLACE GIVEN DRAIN-DELAY GRACE SETTINGS.
*/}}
{{- define "kserve-llamacpp.validate.drain" -}}
{{- $given := index . 1 -}}
{{- $needed := addf (index . 2) (index . 3) -}}
{{- if not (kindIs "invalid" $given) -}}
{{- if le (float64 $given) $needed -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %v, but %s take %v together: raise it above that, or leave it out." (index . 0) $given (index . 4) $needed) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
A budget has one bound: list PLACE BUDGET.
*/}}
{{- define "kserve-llamacpp.validate.budget" -}}
{{- $budget := index . 1 -}}
{{- $hasMinimum := not (kindIs "invalid" $budget.minAvailable) -}}
{{- $hasMaximum := not (kindIs "invalid" $budget.maxUnavailable) -}}
{{- if and $budget.enabled (eq $hasMinimum $hasMaximum) -}}
{{- fail (printf "%s.podDisruptionBudget needs one of minAvailable and maxUnavailable: set the other to null." (index . 0)) -}}
{{- end -}}
{{- end -}}

{{/*
A model comes from somewhere that its server knows: list PLACE MODEL.
*/}}
{{- define "kserve-llamacpp.validate.source" -}}
{{- $place := index . 0 -}}
{{- $model := index . 1 -}}
{{- if $model.isKServe -}}
{{- if not $model.storageUri -}}
{{- fail (printf "%s.storageUri is empty: say where the model is, such as pvc://CLAIM/FOLDER." $place) -}}
{{- end -}}
{{- if $model.volume.claimName -}}
{{- fail (printf "%s.volume is for kind Deployment; an InferenceService takes storageUri: pvc://%s/%s." $place $model.volume.claimName $model.volume.path) -}}
{{- end -}}
{{- if and $model.sharedPrompts (not $model.runtime.create) -}}
{{- fail (printf "%s.sharedPrompts needs a volume in the runtime: set %s.runtime.create to true, or name the prompts in the runtime that exists." $place $place) -}}
{{- end -}}
{{- if and $model.runtime.create $model.runtime.name -}}
{{- fail (printf "%s.runtime.name names a runtime that exists: set %s.runtime.create to false." $place $place) -}}
{{- end -}}
{{- else -}}
{{- if not $model.volume.claimName -}}
{{- fail (printf "%s.volume.claimName is empty: a Deployment takes its model from a claim." $place) -}}
{{- end -}}
{{- if $model.storageUri -}}
{{- fail (printf "%s.storageUri is for kind InferenceService; a Deployment takes volume.claimName and volume.path." $place) -}}
{{- end -}}
{{- if ne $model.deploymentMode "Standard" -}}
{{- fail (printf "%s.deploymentMode is for kind InferenceService: leave it out." $place) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Replicas are possible: list PLACE MODEL.
*/}}
{{- define "kserve-llamacpp.validate.scaling" -}}
{{- $place := index . 0 -}}
{{- $model := index . 1 -}}
{{- $scaling := $model.autoscaling -}}
{{- if and $model.isKServe (not $model.isKnative) (not $scaling.enabled) (eq (int $model.replicas) 0) -}}
{{- fail (printf "%s.replicas is 0, of which KServe makes 1: set %s.enabled to false to stop the model." $place $place) -}}
{{- end -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas is %d and maxReplicas %d: raise maxReplicas." $place (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq (int $scaling.minReplicas) 0) (not $model.isKnative) -}}
{{- fail (printf "%s.autoscaling.minReplicas is 0: only Knative mode starts a model again when a request comes." $place) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
What the chart decides is not decided again: list PLACE ARGS.
*/}}
{{- define "kserve-llamacpp.validate.args" -}}
{{- $place := index . 0 -}}
{{- $instead := dict "--drain_delay_seconds" "drainDelaySeconds" "--grace_seconds" "graceSeconds" "--model_name" "the model's key" "--model_dir" "storageUri or volume" "--enable_grpc" "grpc.enabled" "--prefix_sharing" "prefixSharing" "--shared_prompts" "sharedPrompts" "--ssl_certfile" "tls.secretName" "--ssl_keyfile" "tls.secretName" -}}
{{- range index . 1 -}}
{{- $flag := first (splitList "=" .) -}}
{{- if hasKey $instead $flag -}}
{{- fail (printf "%s.args has %s: use %s instead." $place $flag (get $instead $flag)) -}}
{{- end -}}
{{- if has $flag (list "--http_port" "--http_host" "--grpc_port") -}}
{{- fail (printf "%s.args has %s, which probes and Services rely on: leave it out." $place $flag) -}}
{{- end -}}
{{- end -}}
{{- end -}}
