"""The embedded server, for users without a Redis.

server              leases the server of a data directory, and starts it if needed. A lease is a file
                    lock, which the kernel releases when the process ends
supervisor          a program that runs the server while anyone has a lease, and restarts it if it crashes
supervised_process  runs another program beside the service, such as the archiver
owned_directory     a service's temporary directories
listeners           records which listening sockets belong to the service of a data directory
"""
