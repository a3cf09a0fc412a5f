"""The process with the patients: torch and the images, and no network. The agent speaks to it by a pipe (`protocol`).

What it does when it is asked is `client.train`.
"""
