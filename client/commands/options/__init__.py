"""What commands share: the site's folder and a run as options, how a folder of images is read, progress.

Beneath every command; simulations takes its own options from here too.
"""
