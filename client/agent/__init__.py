"""The process with the network: channel, rounds, budget, worker's pipe. No torch and no image library, not even
indirectly.

Imports what the hospital allows (`client.rules`), says (`client.proposals`) and writes down (`client.trail`).
"""
