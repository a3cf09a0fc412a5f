"""What a person at a hospital sees of it: the ledger, what has left, and all of it in a browser on this machine.

From the files of the home folder alone. No image library and no torch; no patient's name, path or picture.
"""
