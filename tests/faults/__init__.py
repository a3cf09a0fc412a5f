"""Faults in a federation of real processes: what may break, the federation it breaks in, and what is asked afterwards.

    python -m tests.faults --faults 100 --seed 1       `make faults`; --help says the rest

Built on the coordinator and the two hospitals of tests/system/play.py.
"""
