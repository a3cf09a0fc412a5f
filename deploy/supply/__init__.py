"""What a release is answerable for beside its code: licences, reproducible wheels, components, known weaknesses.

Command lines of the developer's environment; nothing here is installed at a hospital or a coordinator.
"""
