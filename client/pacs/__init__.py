"""The hospital's PACS: which there are, whether they answer, studies pulled from them or sent by them, results back.

Two sides, with a pipe between them. What a person starts (`pulling`, `caller`) decides, counts and moves whole studies
into their place; it speaks with no PACS. The process that does (`process`, with `dimse` and `dicomweb`) sees the
hospital's network, on the PACS's port alone, and writes into the staging folder alone; it holds no key of the
federation and does not know its coordinator. What waits for studies that others send is another such process
(`listening`, with `arriving`; seen by who started it: `listener`), which connects to nothing at all.

May import common alone: nothing of the agent, its keys and its trail.
"""
