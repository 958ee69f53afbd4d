"""Two nodes that move objects to and fro for as long as one likes, while everything between them goes wrong.

- `run`: the two machines, the rounds, and what must hold in the end. It is `python -m tests.soak`.
- `clients`: a process in each namespace that has objects moved and looks at every byte; and the proxy there.
- `content`: what objects consist of, and which ones are moved.
- `faults`: what goes wrong, drawn from the seed.
- `figures`: what is measured, and when growth is more than noise.
- `counted`: runs a command of ours, and counts its tasks.
"""
