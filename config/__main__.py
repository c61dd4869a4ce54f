"""`python -m config` is `relais`, for the supervisor that starts gateways with its own interpreter."""

from config.cli import main

main()
