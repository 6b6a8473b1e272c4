"""The programs that the server is measured against, each a process of its own and nothing but the task."""
