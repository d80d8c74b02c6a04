"""The routes. Each module makes a blueprint from the worker's :class:`Dependencies`.

events     a job's log as an event stream; workflow_events: a workflow's jobs
wait       answers when a line matches or the job ends
logs       pages of a log, search in a log or a workflow, new lines, the summary
raw        a log as a download
jobs       the jobs of a workflow
workflows  the list of workflows
publish    publishing, for runners
otlp       OpenTelemetry log records
admin      redaction, deletion and the audit trail
watches    webhooks about a workflow's jobs
ops        health, metrics, the OpenAPI document
ui         the page in the browser
"""
