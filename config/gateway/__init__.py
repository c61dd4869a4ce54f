"""The parts one gateway is put together from, in the order in which `config.wiring` does so.

`store` and `heads` (what we keep and swear), `belief` (whom to believe), `places` (who is where), `spooling`, `stages`,
`targets` and `telling` (the road), `doors` and `systems` (what comes in), `watching` (what looks after all that) and
`asking` (what the command line asks). Each gives the next a small frozen dataclass, and puts on the exit stack what
undoes it; `running` keeps the tasks.
"""
