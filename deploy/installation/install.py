"""Wardround as a service of this machine, each one command, as root; see install.md beside this file.

python3 install.py install site --allow 192.0.2.10     in a wheelhouse
python3 install.py upgrade                             in the wheelhouse of another version
python3 /opt/wardround/current/install.py rollback
python3 /opt/wardround/current/install.py uninstall [--purge]
"""

import sys

sys.dont_write_bytecode = True  # a wheelhouse holds what its manifest lists, and nothing else

from deploy.installation.commands import main  # noqa: E402 - after that

if __name__ == "__main__":
    sys.exit(main())
