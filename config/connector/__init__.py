"""The practice connector, `relais connect`: the same gateway beside the doctor.

`sections` is its one section of a file, `expanding` makes of it the settings every gateway has, `serving` puts its road
together from the parts of `config.gateway`, `supervising` runs it beside a private Dovecot as `config.up` does,
`discovery` and `first_time` write the file.
"""
