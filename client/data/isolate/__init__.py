"""Foreign files are parsed in child processes: the parent's half, the child's half and what crosses the pipe."""
