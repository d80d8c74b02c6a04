"""One log over all tiers: the archive has its beginning, the store its end.

tiered_log  reads pages upwards and downwards, and names the gaps
source      what live reading and history need of a store and of an archive
"""
