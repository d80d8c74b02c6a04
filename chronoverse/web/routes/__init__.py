"""The routes. Each module makes one blueprint from the worker's :class:`Dependencies`.

events     a log as an event stream; workflow_events: the jobs of a workflow
wait       answers when a line matches or the job ends
logs       pages of a log, the search in it and in a whole workflow, new lines, the summary
raw        a log as a download
jobs       the jobs of a workflow
workflows  the list of workflows
publish    publishing, for runners
otlp       log records of OpenTelemetry
admin      redaction, deletion and the audit trail
watches    webhooks about a workflow's jobs
ops        health, metrics, the OpenAPI document
ui         the page in the browser
"""
