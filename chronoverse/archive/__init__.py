"""Old lines as compressed chunks in an object store.

object_store   the interface of an object store, and one in files; s3_store has the other, schemes opens one by its URL
codec          builds chunks from lines, reads lines from them, and rewrites lines in them
reader         reads and searches lines of chunks; caches holds what it has read
prefilter      finds matching lines in a frame, and rules out most of them before they are decoded
job_objects    the archive lock of a job; writes the objects of the job, and deletes those that no record names
manifest       what an archived job's folder says of itself, in job.json
derived        the shapes and the timeline of an archived log, as objects beside its chunks
chunk_writer   moves the next lines of one job from the store into a chunk
archiver       finds jobs with chunks to write, and jobs to delete
store_history  notices a store that has lost a part of its history, and a bucket that is not the store's
verifying      compares the store's records with the archive
retention      how long jobs are kept; deletes a whole job. workflow_settings has those of one workflow, for an import
redaction      replaces text in store and archive
importing      restores jobs that the store has lost
"""
