"""A model behind a local HTTP port: a study or file in, a segmentation, scores or a picture out.

Bound to the loopback address, behind a token that only the user who started it can read. One process: the web server in
a thread, the work in the main thread, files parsed in the reader child as for `predict`. It holds images and no key of
a federation: it imports `client.predict`, what reads and prepares, and `common`, and nothing of a site's home, rules,
trail or agent. `server.py` starts and stops it; `common/web/guard.py` is the door; `app.py` the routes; `upload.py`
what may come in; `jobs.py` the queue; `work.py` the work.
"""
