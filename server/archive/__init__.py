"""The finished runs, each in a folder that is written once: the model, what made it, and what is known of it.

May import evidence, views, federation, registry and home.
"""
