"""The routes. Each module makes one blueprint from the worker's :class:`Dependencies`.

events   a log as an event stream
logs     a log in pages
search   the matching lines of a log, in pages
new_lines  the lines of a log that are new, compared with other runs
raw      a log as a download
jobs     the jobs of a workflow
publish  what runners send
admin    redaction and deletion
ops      health, metrics, the OpenAPI document
ui       the log page
"""
