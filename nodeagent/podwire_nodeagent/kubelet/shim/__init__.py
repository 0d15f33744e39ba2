"""The small process that holds one container (or one exec), as containerd-shim does: it outlives the agent, copies the output to
the log, reaps, and leaves the exit status in a file.

Rules it keeps: standard library only, nothing of podwire but this package, few imports: it is started with `python -I -S`
and is up in 20 ms. It is told everything by one JSON document (`Spec` in ../runtime.py and ../exec.py). Order to read:
main.py (what happens), system.py (system calls), jail.py (the private root), cri.py (the log).
"""
