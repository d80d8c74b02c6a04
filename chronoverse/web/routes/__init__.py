"""The routes. Each module makes one blueprint from the worker's :class:`Dependencies`.

events   a log as an event stream
logs     a log in pages
search   the matching lines of a log, in pages
raw      a log as a download
jobs     the jobs of a workflow
publish  what runners send
admin    redaction and deletion
ops      health, metrics, the OpenAPI document
ui       the log page
"""
