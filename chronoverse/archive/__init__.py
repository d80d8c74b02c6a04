"""Old lines as compressed chunks in an object store.

object_store   the interface of object stores, and one in files; s3_store is another, schemes opens one by its URL
codec          builds chunks from lines, reads lines from them, and rewrites lines in them
reader         reads and searches lines of chunks; caches has its caches
prefilter      finds candidate lines in a frame before they are decoded
job_objects    the archive lock of a job; writes the objects of the job, and deletes those that no record names
manifest       job.json, which describes an archived job
derived        the shapes and the timeline of an archived log, as objects beside its chunks
chunk_writer   moves the next lines of one job from the store into a chunk
archiver       finds jobs with chunks to write, and jobs to delete
store_history  detects a store that lost data, and a bucket of another store
verifying      compares the store's records with the archive
retention      deletes jobs whose retention is over; workflow_settings saves a workflow's settings for an import
redaction      replaces text in store and archive
importing      restores jobs that the store has lost
"""
