"""What answers on this machine's own address alone: sockets on loopback, a web server in a thread, and dashboards.

`connection.py` and `listening.py` are the server. For people `login.py` says who may look, `door.py` asks each request
for it, `pages.py` shows what a side gives it, `dashboard.py` starts and stops all of it. For programs `token.py` says
who may ask, `guard.py` asks each request for it, and `measures.py` is what Prometheus is told. Nothing here knows what
a run is.
"""
