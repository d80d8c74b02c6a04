"""One log over both tiers: the archive has its older lines, the store its newer ones.

tiered_log  chooses the tier for each read, and reads entries upwards and downwards with their gaps
pages       reads one page of a log; page_budget bounds what the page may cost
protocols   what readers need of a store
scans       goes through many lines to find a few, in a process of low priority
"""
