"""Documents about a run for those who must account for it, one a file, made of server/views/facts.py alone.

May import views, registry and home. docs/evidence.md says what each document is and is not.
"""
