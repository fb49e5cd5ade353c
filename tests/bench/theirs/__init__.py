"""What the others' packages do, each as its documentation says; every module here is a process that serves passes.

They import nothing of ours but `tests.bench.peer`, which needs the standard library alone.
"""
