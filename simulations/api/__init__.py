"""What programs and notebooks call, and the commands too: a scenario loaded, simulated, compared. No command line.

`from simulations import load, simulate, compare` gives its three functions, and loads nothing before one is asked for.
"""
