"""Old lines as compressed chunks in an object store, and what may become of them.

object_store   what an archive needs of one; file_store and s3_store are two, connect opens one
codec          packs lines into chunks, and unpacks frames of them
reader         reads lines of chunks; caches holds what it has read
search         finds matching lines in chunks; prefilter rules out what need not be decoded
archiver       moves lines from the store into chunks; queue says which job is next
chunk_writer   writes one job's chunks, under the job's archive lock
rewrite        writes chunks again without what was redacted
redaction      replaces text in store and archive
retention      deletes jobs that are over their time
garbage        deletes objects that no record names any more
"""
