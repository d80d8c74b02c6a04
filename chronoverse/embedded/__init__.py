"""The server of the default set-up, which needs no Redis of the user's own.

server              starts and holds the server of a data directory
supervisor          a program that keeps one server running while anybody holds it
supervised_process  keeps another program running beside the service, such as the archiver
listeners           says which listening sockets are the service of a data directory
"""
