"""The hospital's PACS: which there are, whether they answer, and studies pulled from them.

Two sides, with a pipe between them. What a person starts (`pulling`, `caller`) decides, counts and moves whole studies
into their place; it speaks with no PACS. The process that does (`process`, with `dimse` and `dicomweb`) sees the
hospital's network, on the PACS's port alone, and writes into the staging folder alone; it holds no key of the
federation and does not know its coordinator.

May import common alone: nothing of the agent, its keys and its trail.
"""
