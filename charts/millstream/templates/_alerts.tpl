{{/*
Each alert is something to be done by a person, and says what. Those of the operator know its Pods by the ServiceMonitor's labels, those of workers know pipeline and stage by the PodMonitor's.
*/}}
{{- define "millstream.alerts" -}}
{{- $operator := printf "job=%q,namespace=%q" (include "millstream.name" .) .Release.Namespace -}}
{{- $watched := "" -}}
{{- with .Values.watchNamespace }}{{ $watched = printf "namespace=%q," . }}{{ end -}}
{{- $pipelines := printf "%sjob=%q" $watched (include "millstream.name" .) -}}
{{- $one := "{{ $labels.namespace }}/{{ $labels.pipeline }}" -}}
{{- $stage := "{{ $labels.stage }}" -}}
{{- $tenant := "{{ $labels.tenant }}" -}}
{{- $count := "{{ $value }}" -}}
{{- $percent := "{{ $value | humanizePercentage }}" -}}
{{- $duration := "{{ $value | humanizeDuration }}" -}}
{{- $describe := "kubectl -n {{ $labels.namespace }} describe mip {{ $labels.pipeline }}" -}}
operator:
  - alert: MillstreamOperatorNotLeading
    expr: (sum(millstream_operator_leader{ {{- $operator }}}) or vector(0)) == 0
    for: 1m
    labels: {severity: critical}
    annotations:
      summary: No operator of Millstream leads
      description: >-
        Workers go on and take over from each other, but nothing is scaled, changed or moved.
        See whether the Pods of deployment {{ .Release.Namespace }}/{{ include "millstream.name" . }} run and what their logs say (the API server, the Lease, permissions);
        when one leads, Prometheus does not reach its Service.
  - alert: MillstreamReconcilesFail
    expr: |-
      sum by (kind) (rate(millstream_operator_reconciles_total{ {{- $operator }},result!="ok"}[15m]))
        / sum by (kind) (rate(millstream_operator_reconciles_total{ {{- $operator }}}[15m])) > 0.5
    for: 15m
    labels: {severity: warning}
    annotations:
      summary: Most reconciliations of {{ "{{ $labels.kind }}" }} fail
      description: >-
        {{ $percent }} of them fail. The label `result` of millstream_operator_reconciles_total is the reason; the condition Degraded of the resources says the same with details.
        Forbidden: a permission of the chart's role is missing. ApiServerUnavailable: see to the API server. Others: mend what the condition names.
pipelines:
  - alert: MillstreamPipelineNotReady
    expr: max by (namespace, pipeline) (millstream_pipeline_condition{ {{- $pipelines }},condition="Ready"}) == 0
    for: 5m
    labels: {severity: critical}
    annotations:
      summary: Pipeline {{ $one }} is not ready
      description: >-
        `{{ $describe }}` names the reason in the condition Ready, and what to mend. Records that gateways have accepted are not lost, but may wait.
        A pipeline with `spec.suspend` is never ready: silence it.
  - alert: MillstreamPipelineDegraded
    expr: |-
      max by (namespace, pipeline) (millstream_pipeline_condition{ {{- $pipelines }},condition="Degraded"}) == 1
        and max by (namespace, pipeline) (millstream_pipeline_condition{ {{- $pipelines }},condition="Ready"}) == 1
    for: 15m
    labels: {severity: warning}
    annotations:
      summary: Pipeline {{ $one }} works, but something is wrong with it
      description: >-
        `{{ $describe }}` names it in the condition Degraded: shards whose owners complain (a full disk, a transaction that the brokers do not end), or what the operator cannot reach or change.
  - alert: MillstreamShardsWithoutOwner
    expr: |-
      max by (namespace, pipeline, stage) (millstream_pipeline_shards{ {{- $pipelines }},state="wanted"})
        - max by (namespace, pipeline, stage) (millstream_pipeline_shards{ {{- $pipelines }},state="owned"}) > 0
    for: 1m
    labels: {severity: critical}
    annotations:
      summary: In {{ $one }}, {{ $count }} shards of the stage {{ $stage }} have no owner
      description: >-
        Their records wait in Kafka. A takeover takes seconds, so that something keeps the others from it: no worker of the stage runs, Kafka does not answer, or the shard cannot be opened.
        `{{ $describe }}` says which, and why.
  - alert: MillstreamNoWarmStandby
    expr: |-
      max by (namespace, pipeline, stage) (millstream_pipeline_shards{ {{- $pipelines }},state="wanted"})
        - max by (namespace, pipeline, stage) (millstream_pipeline_shards{ {{- $pipelines }},state="warm"}) > 0
    for: 15m
    labels: {severity: warning}
    annotations:
      summary: In {{ $one }}, {{ $count }} shards of the stage {{ $stage }} have no warm standby
      description: >-
        When their owner is lost, they are read from the changelog first. Give the stage a second worker, or see why the standbys do not catch up: CPU, disk and Kafka of the stage's Pods, and their logs.
        A pipeline with `standbys: 0` or one worker per stage has none by choice: silence it.
  - alert: MillstreamRetentionAtRisk
    expr: max by (namespace, pipeline) (millstream_pipeline_condition{ {{- $pipelines }},condition="RetentionAtRisk"}) == 1
    for: 5m
    labels: {severity: critical}
    annotations:
      summary: Kafka may delete records of {{ $one }} before they are read
      description: >-
        `{{ $describe }}` names shards, topic, age and retention. Raise retention.ms of the topic (kafka-configs.sh; `spec.kafka.retention` is only for topics that are created) at once, then see why the stage is behind (millstream_stage_unread_seconds).
workers:
  - alert: MillstreamGatewayErrors
    expr: |-
      sum by (namespace, pipeline) (rate(millstream_gateway_requests_total{ {{- $watched }}code=~"5.."}[5m]))
        / sum by (namespace, pipeline) (rate(millstream_gateway_requests_total{ {{- $watched }}}[5m])) > 0.05
    for: 5m
    labels: {severity: critical}
    annotations:
      summary: Gateways of {{ $one }} answer {{ $percent }} of the requests with 5xx
      description: >-
        Senders keep these records and try again. Either Kafka does not acknowledge in time (millstream_gateway_acknowledge_seconds; see to the brokers),
        or more bytes are in flight than gateways take (millstream_gateway_in_flight_bytes; scale the stage gateway, or give it more memory).
  - alert: MillstreamRecordsRejected
    expr: |-
      sum by (namespace, pipeline, tenant) (rate({ {{- $watched }}__name__=~"millstream_gateway_rejects_total|millstream_stage_rejects_total"}[15m]))
        / sum by (namespace, pipeline, tenant) (rate(millstream_gateway_records_total{ {{- $watched }}outcome!="limited"}[15m])) > {{ divf .Values.monitoring.alerts.rejectedPercent 100 }}
    for: 15m
    labels: {severity: warning}
    annotations:
      summary: In {{ $one }}, {{ $percent }} of the records of tenant {{ $tenant }} are rejected
      description: >-
        The label `reason` of millstream_gateway_rejects_total and millstream_stage_rejects_total says why; each record is in the topic `rejects` with its field and message, or was in the answer.
        Mostly its sender has changed: tell who runs it.
  - alert: MillstreamShardFallsBehind
    expr: |-
      count by (namespace, pipeline, stage) (
        resets(millstream_stage_input_lag{ {{- $watched }}}[10m]) == 0 and min_over_time(millstream_stage_input_lag{ {{- $watched }}}[10m]) > 0)
    for: 5m
    labels: {severity: warning}
    annotations:
      summary: In {{ $one }}, {{ $count }} shards of the stage {{ $stage }} fall behind
      description: >-
        Their lag (millstream_stage_input_lag) has not shrunk once in 10 minutes. One shard: its worker's condition says what holds it, `{{ $describe }}`. All shards: scale the stage.
  - alert: MillstreamDocumentsLate
    expr: |-
      histogram_quantile(0.99, sum by (namespace, pipeline, le) (rate(millstream_reaction_freshness_seconds_bucket{ {{- $watched }}}[5m]))) > {{ .Values.monitoring.alerts.freshnessSeconds }}
    for: 10m
    labels: {severity: warning}
    annotations:
      summary: Documents of {{ $one }} are written late
      description: >-
        1 of 100 documents is older than {{ $duration }} when it is written. The stage with the largest millstream_stage_input_lag is the slow one: scale it, or give it CPU.
        When it is reaction, see to the document store.
  - alert: MillstreamDocumentStoreFailing
    expr: |-
      sum by (namespace, pipeline) (rate(millstream_reaction_writes_total{ {{- $watched }}outcome="retried"}[5m]))
        / sum by (namespace, pipeline) (rate(millstream_reaction_writes_total{ {{- $watched }}}[5m])) > 0.5
      or (sum by (namespace, pipeline) (millstream_reaction_backlog{ {{- $watched }}}) > 0
        unless sum by (namespace, pipeline) (rate(millstream_reaction_writes_total{ {{- $watched }}outcome="written"}[5m])) > 0)
    for: 5m
    labels: {severity: critical}
    annotations:
      summary: The document store of {{ $one }} does not take writes
      description: >-
        They are tried again and nothing is lost, but documents get old. See whether the document store answers, and whether its password and permissions are right:
        the logs of the Pods of stage reaction have its words.
  - alert: MillstreamDocumentsRefused
    expr: sum by (namespace, pipeline, tenant) (increase(millstream_stage_rejects_total{ {{- $watched }}reason="document_refused"}[15m])) > 0
    labels: {severity: warning}
    annotations:
      summary: The document store refuses documents of tenant {{ $tenant }} in {{ $one }} for good
      description: >-
        They are not written and not tried again. The topic `rejects` has each with the store's words: a document that is too large, or a validation or index of the collection that they break.
{{- end }}
