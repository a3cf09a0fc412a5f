"""Wardround as a service of a machine: installed from a wheelhouse, upgraded, rolled back, uninstalled.

Standard library only, and nothing of our other packages: it runs before anything is installed, out of a wheelhouse
(deploy/wheelhouse.py copies it there) and out of each version that it has installed.
"""
