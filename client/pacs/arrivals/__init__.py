"""Studies that others send to this site: by C-STORE (`cstore`) or STOW-RS (`stow`), whole or set aside.

Two sides, as in the room around. `listener` is who started it: it moves whole studies and sets others aside. The
process that waits (`listening`) has one port and one folder, holds no key of the federation and connects to nothing;
`arriving` says in it what may be written, and when a study is whole, however it came.

May import client.pacs and what that may.
"""
