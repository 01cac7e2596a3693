"""Run the command line as `python -m worker.cli`."""

from worker.command_line import main

main()
