"""Stores old lines as compressed chunks in an object store.

object_store   the interface of object stores, and a store in files; s3_store: one in S3; schemes: opens either by URL
codec          builds, reads and rewrites chunks
reader         reads and searches the lines of chunks; caches: its caches
prefilter      finds candidate lines in a frame before they are decoded
job_objects    a job's archive lock; writes the job's objects, and deletes unrecorded ones
manifest       job.json, which describes an archived job
derived        an archived log's shapes and timeline, as objects beside its chunks
chunk_writer   moves a job's next lines from the store into a chunk
archiver       finds jobs with chunks to write, and jobs to delete
store_history  detects a store that lost data, and an archive that belongs to another store
verifying      compares the store's records with the archive
retention      deletes expired jobs; workflow_settings: saves a workflow's settings for an import
redaction      replaces text in store and archive
importing      restores jobs that the store has lost
"""
